"""Classes that a plan names and an operator installed: a rule, a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_T = TypeVar("_T")


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
