"""A federation of real processes over real mutual TLS, an experiment that obeys the test, and eyes on all processes.

Waits are on events of the director, on named pipes (`Gate`) and on pidfds; nothing sleeps.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from federation.client.local import LocalFederation

from .processes import Eyes, kill, processes_of
from .reckoning import Reckoning
from .sites import EXAMPLES, HERE, load_module, site
from .trials import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session", name="eyes")
def _eyes() -> type[Eyes]:
    return Eyes


@pytest.fixture(scope="session", name="kill")
def _kill() -> Callable[..., None]:
    return kill


@pytest.fixture(scope="session", name="processes_of")
def _processes_of() -> Callable[[Path], list[int]]:
    return processes_of


@pytest.fixture(scope="session")
def start() -> Callable[..., contextlib.AbstractContextManager[Trial]]:
    """Return what starts a federation in a folder and ends it on the way out; kinds of shards by site."""

    @contextlib.contextmanager
    def begin(folder: Path, sites: dict[str, tuple[str, ...]] | None = None, **more: Any) -> Iterator[Trial]:
        gates = folder / "gates"
        gates.mkdir(parents=True)
        settings = more.pop("settings", {})
        members = [
            site(name, gates, *kinds, **settings.get(name, {}))
            for name, kinds in (sites or {"north": (), "south": ()}).items()
        ]
        with LocalFederation(folder / "federation", sites=members, **more) as local:
            trial = Trial(local, gates)
            try:
                yield trial
            finally:
                trial.close()

    return begin


@pytest.fixture(scope="session")
def rows_of() -> Callable[[str], Any]:
    """Return what gives the rows of a site as its trainer loads them."""
    return lambda name: load_module(HERE / "site" / "rows.py").Rows(*EXAMPLES[name])


@pytest.fixture(scope="session")
def reckon() -> type[Reckoning]:
    return Reckoning
