"""Partition schemes by name, as a command line or a configuration writes them: ``iid``, ``dirichlet:0.3``.

=====================  ==============================================================================================
``iid``                equal sizes, at random (`iid`)
``replacement``        the same, each site drawing from all: examples may come twice
``balanced``           equal sizes and equal shares of every class (`balanced`)
``lognormal:SIGMA``    log-normal sizes (`lognormal_sizes`)
``sizes:ALPHA``        sizes by a Dirichlet draw (`dirichlet_sizes`); ``sizes:ALPHA,MINIMUM``
``dirichlet:ALPHA``    each class spread by a Dirichlet draw (`label_dirichlet`); ``dirichlet:ALPHA,MINIMUM``
``inner:ALPHA``        each site its own mix of classes, at equal sizes (`inner_dirichlet`)
``shards:PER_SITE``    so many shards of the examples sorted by class (`shards`)
``labels:COUNT``       so many classes at each site (`labels_per_site`)
``fcube``              opposite octants of a cube, 4 sites (`fcube`)
``noise:SIGMA``        `iid`, and noise on the features that grows from site to site (`feature_noise`)
``natural``            by who the examples belong to: the shard's ``ids`` (`natural`)
=====================  ==============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.data.partitions import classes, features, sizes
from federation.errors import PlanError
from federation.rounds.choices import parse_choice

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.tensors.buffers import Array


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
        numbers = ",".join(f"{value:g}" for value in self.parameters)
        return f"{self.name}:{numbers}" if numbers else self.name

    def divide(self, source: Source, sites: int, *, seed: int) -> list[Array]:
        """Return the sorted example numbers of each site.

        Raises:
            PlanError: the scheme cannot divide this data among so many sites.
        """
        return _SCHEMES[self.name].divide(source, sites, seed, *self.parameters)

    @property
    def noise(self) -> float:
        """Variance of the noise that the last site's features get; 0 for every scheme but ``noise``."""
        return self.parameters[0] if self.name == "noise" else 0.0


def parse_partition(spec: str) -> PartitionScheme:
    """Read a scheme such as ``"dirichlet:0.3"``.

    Raises:
        PlanError: no such scheme, or its parameters do not fit.
    """
    name, parameters = parse_choice(spec, "partition")
    if name not in _SCHEMES:
        raise PlanError(f"there is no partition {spec!r}, only {', '.join(partition_names())}")
    entry = _SCHEMES[name]
    fits = entry.least <= len(parameters) <= len(entry.takes)
    if not fits or any(
        what in _WHOLE and not value.is_integer() for value, what in zip(parameters, entry.takes, strict=False)
    ):
        raise PlanError(f"partition {spec!r} has parameters {list(parameters)}, expected {entry.form(name)}")
    return PartitionScheme(name=name, parameters=parameters)


def partition_names() -> tuple[str, ...]:
    """Return how every scheme is written, such as ``"dirichlet:ALPHA"``."""
    return tuple(entry.form(name) for name, entry in _SCHEMES.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A scheme: the parameters it takes, at least `least` of them, and the function that divides."""

    divide: Callable[..., list[Array]]
    takes: tuple[str, ...] = ()
    least: int = 0

    def form(self, name: str) -> str:
        most = "".join(f"[,{what}]" for what in self.takes[self.least :])
        return f"{name}:{','.join(self.takes[: self.least])}{most}" if self.least else name


_WHOLE = frozenset({"PER_SITE", "COUNT", "MINIMUM"})


def _iid(source: Source, sites: int, seed: int) -> list[Array]:
    return sizes.iid(source.examples, sites, seed=seed)


def _replacement(source: Source, sites: int, seed: int) -> list[Array]:
    return sizes.iid(source.examples, sites, seed=seed, replacement=True)


def _balanced(source: Source, sites: int, seed: int) -> list[Array]:
    return sizes.balanced(source.labels(), sites, seed=seed)


def _lognormal(source: Source, sites: int, seed: int, sigma: float) -> list[Array]:
    return sizes.lognormal_sizes(source.examples, sites, sigma=sigma, seed=seed)


def _sizes(source: Source, sites: int, seed: int, alpha: float, minimum: float = sizes.MINIMUM) -> list[Array]:
    return sizes.dirichlet_sizes(source.examples, sites, alpha=alpha, seed=seed, minimum=int(minimum))


def _dirichlet(source: Source, sites: int, seed: int, alpha: float, minimum: float | None = None) -> list[Array]:
    least = None if minimum is None else int(minimum)
    return classes.label_dirichlet(source.labels(), sites, alpha=alpha, seed=seed, minimum=least)


def _inner(source: Source, sites: int, seed: int, alpha: float) -> list[Array]:
    return classes.inner_dirichlet(source.labels(), sites, alpha=alpha, seed=seed)


def _shards(source: Source, sites: int, seed: int, per_site: float) -> list[Array]:
    return classes.shards(source.labels(), sites, per_site=int(per_site), seed=seed)


def _labels(source: Source, sites: int, seed: int, count: float) -> list[Array]:
    return classes.labels_per_site(source.labels(), sites, count=int(count), seed=seed)


def _fcube(source: Source, sites: int, seed: int) -> list[Array]:
    return features.fcube(source.points())


def _noise(source: Source, sites: int, seed: int, sigma: float) -> list[Array]:
    return sizes.iid(source.examples, sites, seed=seed)


def _natural(source: Source, sites: int, seed: int) -> list[Array]:
    return features.natural(source.ids(), sites)


_SCHEMES: dict[str, _Entry] = {
    "iid": _Entry(divide=_iid),
    "replacement": _Entry(divide=_replacement),
    "balanced": _Entry(divide=_balanced),
    "lognormal": _Entry(divide=_lognormal, takes=("SIGMA",), least=1),
    "sizes": _Entry(divide=_sizes, takes=("ALPHA", "MINIMUM"), least=1),
    "dirichlet": _Entry(divide=_dirichlet, takes=("ALPHA", "MINIMUM"), least=1),
    "inner": _Entry(divide=_inner, takes=("ALPHA",), least=1),
    "shards": _Entry(divide=_shards, takes=("PER_SITE",), least=1),
    "labels": _Entry(divide=_labels, takes=("COUNT",), least=1),
    "fcube": _Entry(divide=_fcube),
    "noise": _Entry(divide=_noise, takes=("SIGMA",), least=1),
    "natural": _Entry(divide=_natural),
}
