"""The ``director`` command: run, check the configuration, migrate the database, list the settings.

Exit codes: 0 stopped in good order; 1 a fault while running (start it again); 2 configuration that a person must mend.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer
from pydantic import BaseModel

from director import checking, daemon
from director.config import DirectorSettings, read_settings
from director.store.database import Database
from federation.errors import ConfigurationError, FederationError
from federation.runtime.shutdown import Shutdown
from federation.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULT, BAD_CONFIGURATION = 1, 2

app = typer.Typer(
    add_completion=False,
    help="The director of a federation: takes experiments in, starts their aggregators, asks the envoys.",
    pretty_exceptions_enable=False,
)

_Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="director.toml. Default: settings come from DIRECTOR_… variables alone."),
]


@app.callback(invoke_without_command=True)
def run(context: typer.Context, config: _Config = None) -> None:
    """Run the director until SIGTERM or Ctrl-C, which drains; a second one stops at once."""
    if context.invoked_subcommand is not None:
        context.obj = config
        return
    settings = _settings(config)
    logs.configure(settings.log_level.upper(), role="director", federation=settings.federation)
    try:
        asyncio.run(_run(settings))
    except ConfigurationError as error:
        _fail(error, BAD_CONFIGURATION)
    except FederationError as error:
        _fail(error, FAULT)


@app.command()
def check(context: typer.Context, config: _Config = None) -> None:
    """Check settings, certificates and database address without starting anything."""
    settings = _settings(config or context.obj)
    try:
        for line in checking.check(settings):
            typer.echo(line)
    except FederationError as error:
        _fail(error, BAD_CONFIGURATION)


@app.command()
def migrate(context: typer.Context, config: _Config = None) -> None:
    """Bring the database to what this release needs; every start does so too."""
    settings = _settings(config or context.obj)
    try:
        asyncio.run(_migrate(settings))
    except FederationError as error:
        _fail(error, BAD_CONFIGURATION)
    typer.echo("the database is up to date")


@app.command("settings")
def show_settings() -> None:
    """List every setting with its meaning and default."""
    for name, text in describe_settings(DirectorSettings):
        typer.echo(f"{name}\n    {text}")


def describe_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each setting's dotted name and description, sections opened."""
    for name, info in model.model_fields.items():
        annotation: Any = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from describe_settings(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info.description or ""


def main() -> None:
    """Entry point of the ``director`` script."""
    app()


async def _run(settings: DirectorSettings) -> None:
    shutdown = Shutdown()
    shutdown.install()
    try:
        await daemon.run(settings, shutdown)
    finally:
        shutdown.uninstall()


async def _migrate(settings: DirectorSettings) -> None:
    daemon.make_folders(settings)
    database = Database(settings.database_url, lambda _: None)
    try:
        await database.migrate()
    finally:
        await database.close()


def _settings(config: Path | None) -> DirectorSettings:
    try:
        return read_settings(config)
    except ConfigurationError as error:
        _fail(error, BAD_CONFIGURATION)


def _fail(error: FederationError, code: int) -> Never:
    print(f"director: {error}", file=sys.stderr)
    raise typer.Exit(code)
