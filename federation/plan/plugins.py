"""What a plan names: a rule, a method, a codec that is built in, or that an operator installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint

_T = TypeVar("_T")


class Catalogue(Mapping[str, _T]):
    """What is built in by name, in the order of the documentation; imported when it is asked for, names at no cost.

    A process needs the few that its plan names, and importing all of them was a fifth of the start of a trainer.

    Args:
        package: that all of them are in.
        places: module and object of each name, such as ``"fedopt:FedAdam"``.
    """

    def __init__(self, package: str, places: Mapping[str, str]) -> None:
        self._package = package
        self._places = dict(places)

    def __getitem__(self, name: str) -> _T:
        module, _, what = self._places[name].partition(":")
        found: _T = attrgetter(what)(import_module(f"{self._package}.{module}"))
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def load_plugin(entry: EntryPoint, kind: type[_T], what: str) -> type[_T]:
    """Return the class that an entry point names.

    Args:
        entry: of an installed distribution.
        kind: class it must be a subclass of.
        what: what it is called to people, such as ``algorithm``.

    Raises:
        ConfigurationError: it cannot be loaded, or is something else.
    """
    try:
        found = entry.load()
    except Exception as error:
        raise ConfigurationError(f"{what} {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigurationError(f"{what} {entry.name!r} ({entry.value}) is not a subclass of {kind.__name__}")
    return found
