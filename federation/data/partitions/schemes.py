"""Partition schemes by name, as a command line or a configuration writes them: ``iid``, ``dirichlet:0.3``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.data.partitions import sizes
from federation.errors import PlanError
from federation.rounds.choices import parse_choice

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.tensors.buffers import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionScheme:
    """A way to divide one dataset among sites.

    Attributes:
        name: its registered name.
        parameters: the numbers behind the colon.
    """

    name: str
    parameters: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return it as `parse_partition` reads it."""
        return ":".join(
            [self.name, *([",".join(f"{value:g}" for value in self.parameters)] if self.parameters else [])]
        )

    def divide(self, source: Source, sites: int, *, seed: int) -> list[Array]:
        """Return the sorted example numbers of each site.

        Raises:
            PlanError: the scheme cannot divide this data among so many sites.
        """
        return _SCHEMES[self.name].divide(self, source, sites, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a scheme may look at; each is computed only if the scheme needs it.

    Attributes:
        examples: number of examples.
        labels: gives the class of each example, shape (n,).
        points: gives the samples, shape (n, …).
        ids: gives the natural owner of each example, shape (n,).
    """

    examples: int
    labels: Callable[[], Array]
    points: Callable[[], Array]
    ids: Callable[[], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    form: str
    divide: Callable[[PartitionScheme, Source, int, int], list[Array]]


def parse_partition(spec: str) -> PartitionScheme:
    """Read a scheme such as ``"dirichlet:0.3"``.

    Raises:
        PlanError: no such scheme, or its parameters do not fit.
    """
    name, parameters = parse_choice(spec, "partition")
    if name not in _SCHEMES:
        raise PlanError(f"there is no partition {spec!r}, only {', '.join(entry.form for entry in _SCHEMES.values())}")
    return PartitionScheme(name=name, parameters=parameters)


def _iid(scheme: PartitionScheme, source: Source, sites: int, seed: int) -> list[Array]:
    return sizes.iid(source.examples, sites, seed=seed)


_SCHEMES: dict[str, _Entry] = {"iid": _Entry(form="iid", divide=_iid)}
