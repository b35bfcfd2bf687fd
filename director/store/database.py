"""The database: one connection in one thread, one transaction per call, migrated before use.

Rules, in order:

1. Every access is a function that takes a `Session` and is run by `Database.transact` in the one database thread:
   writes never race each other inside this process, and the event loop never waits for a disk.
2. A transaction that touches an experiment's events announces it after the commit and never before, whoever wrote it.
3. Transactions are durable (SQLite `synchronous=FULL`) unless the caller says that losing the last ones to a power cut
   is harmless, as it is for rounds and progress, which an aggregator's journal holds anyway.
4. What SQLAlchemy raises becomes StorageError here and nowhere else.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from federation.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

_BUSY_S = 30.0
"""Seconds to wait for another process's lock on a SQLite file: a backup, or a person with a shell."""

_TOUCHED = "touched experiments"


def touch(session: Session, experiment: str) -> None:
    """Note that the experiment has something new to watch; announced once the transaction is committed."""
    session.info.setdefault(_TOUCHED, set()).add(experiment)


class Database:
    """The director's database.

    Args:
        url: SQLAlchemy URL; ``sqlite:///path`` or ``postgresql+psycopg://…``.
        announce: called on the event loop, after each commit, with the experiments the transaction touched.

    Raises:
        ConfigurationError: the URL cannot be used here, such as PostgreSQL without its driver.
    """

    def __init__(self, url: str, announce: Callable[[frozenset[str]], None]) -> None:
        self._announce = announce
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="director-database")
        self._durable = _engine(url, durable=True)
        self._relaxed = _engine(url, durable=False)

    @property
    def dialect(self) -> str:
        """Name of the database behind the URL, such as ``sqlite``."""
        return self._durable.dialect.name

    async def migrate(self) -> None:
        """Bring the tables to what this release needs.

        Raises:
            StorageError: the database cannot be reached or was made by a newer release.
        """
        await self._in_thread(self._migrate)

    async def transact(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(session, …)` in one durable transaction and return what it returns.

        Raises:
            StorageError: the database failed; nothing was changed. Errors `work` raises pass through, likewise.
        """
        return await self._in_thread(self._work, self._durable, work, args, kwargs)

    async def relaxed(self, work: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `transact`, but a power cut may lose it: for what an aggregator will report again."""
        return await self._in_thread(self._work, self._relaxed, work, args, kwargs)

    def announce(self, experiment: str) -> None:
        """Announce news of an experiment that is not in the database, such as a log line."""
        self._announce(frozenset({experiment}))

    async def close(self) -> None:
        """Close connections and the thread."""
        try:
            await self._in_thread(self._dispose)
        finally:
            self._thread.shutdown(wait=False)

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _translated, call, loop, *args)

    def _migrate(self, _loop: asyncio.AbstractEventLoop) -> None:
        config = Config()
        config.set_main_option("script_location", "director:migrations")
        with self._durable.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        work: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> T:
        with Session(engine, expire_on_commit=False) as session:
            with session.begin():
                if engine is self._relaxed and engine.dialect.name == "postgresql":
                    session.execute(text("SET LOCAL synchronous_commit = off"))
                result = work(session, *args, **kwargs)
            touched = frozenset(session.info.get(_TOUCHED, ()))
        if touched:
            # From the thread, not after the await: a caller that was cancelled meanwhile must not swallow the news.
            loop.call_soon_threadsafe(self._announce, touched)
        return result

    def _dispose(self, _loop: asyncio.AbstractEventLoop) -> None:
        self._durable.dispose()
        self._relaxed.dispose()


def check_url(url: str) -> str:
    """Check that a database URL can be used here, and return it without its password.

    Raises:
        ConfigurationError: it cannot.
    """
    _engine(url, durable=True).dispose()
    return _without_password(url)


def _translated(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except SQLAlchemyError as error:
        raise StorageError(f"the director's database failed: {str(error).splitlines()[0]}") from error


def _engine(url: str, *, durable: bool) -> Engine:
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        connect_args = {"timeout": _BUSY_S} if sqlite else {}
        engine = create_engine(parsed, connect_args=connect_args, pool_size=1, pool_pre_ping=not sqlite)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, TypeError) as error:
        raise ConfigurationError(
            f"database URL {_without_password(url)!r} cannot be used: {error}; use sqlite:///path/director.db, or "
            "postgresql+psycopg://user@host/name with the 'postgresql' extra installed"
        ) from error
    if sqlite:
        _prepare_sqlite(engine, "FULL" if durable else "NORMAL")
    return engine


def _prepare_sqlite(engine: Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # the driver's own idea of when to begin is replaced by the one below
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # IMMEDIATE: a transaction that reads before it writes would otherwise fail, not wait, when another got between.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "…"
