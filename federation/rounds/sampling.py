"""Which sites a round asks: a draw that anybody with the plan can repeat.

The draw depends on the plan's seed, the round, the attempt and the *set* of candidates, never on the order in which
they connected. A retried round draws again, so that one silent site cannot hold every attempt. Samplers, by name:

* ``uniform``: `sample` of them, each set equally likely; all if `sample` is None.
* ``fraction:C``: max(⌊C·N⌋, 1) of N, each set equally likely [McMahan et al. 2017, algorithm 1].
* ``poisson:Q``: each by itself with probability Q; drawn again while fewer than `least` came out.
* ``weighted``: `sample` of them without replacement, likelier with more examples [Efraimidis, Spirakis 2006].
* ``available``: every site that is there; what makes a site unavailable is its own affair, or a simulation's script.

A sampler of one's own is installed on the server as an entry point of group ``federation.samplers``: a factory that
takes the numbers behind the colon and gives a `SiteSampler`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from federation.errors import PlanError
from federation.rounds import randomness
from federation.rounds.choices import parse_choice

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from federation.names import SiteName
    from federation.plan import Plan

ENTRY_POINTS = "federation.samplers"
_EMPTY_DRAWS = 10_000
"""Draws in a row that may bring too few sites before all are taken; reached only with an absurdly small probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a sampler draws from.

    Attributes:
        candidates: sites that could be asked, in name order; at least one.
        count: the plan's `sample`; None: as many as the sampler says.
        weights: examples of each site as declared; a site that is missing counts as one example.
        rng: the draw's stream; nothing else may be random.
        least: fewest sites a round may ask, as far as there are candidates.
    """

    candidates: Sequence[SiteName]
    count: int | None
    weights: Mapping[SiteName, int]
    rng: random.Random
    least: int = 1


class SiteSampler(Protocol):
    """A rule that draws the sites of a round.

    Attributes:
        takes_count: whether it draws `Draw.count` sites (all, if that is None); else it decides itself how many.
    """

    takes_count: bool

    def draw(self, draw: Draw, /) -> tuple[SiteName, ...]:
        """Return the sites to ask, in any order."""
        ...


def draw_sites(
    connected: Iterable[SiteName],
    *,
    sample: int | None,
    seed: int,
    round_number: int,
    attempt: int,
    sampler: str = "uniform",
    weights: Mapping[SiteName, int] | None = None,
    least: int = 1,
) -> tuple[SiteName, ...]:
    """Return the sites to ask, in name order.

    Args:
        connected: sites that could be asked.
        sample: how many to ask; None, or more than there are: all, or as many as the sampler says.
        seed: root seed of the plan.
        round_number: round, from 1.
        attempt: try at this round, from 1.
        sampler: the plan's sampler, by its registered name and parameters.
        weights: examples of each site; only ``weighted`` looks at them.
        least: fewest sites to ask, where the sampler leaves the number to chance.

    Raises:
        PlanError: no such sampler, or its parameters do not fit.
    """
    candidates = sorted(set(connected))
    if not candidates or sample == 0:
        return ()
    rule = load_sampler(sampler)
    if isinstance(rule, _Uniform) and (sample is None or sample >= len(candidates)):
        return tuple(candidates)
    rng = randomness.stream(seed, round_number, "", f"sampling/{attempt}")
    draw = Draw(candidates=candidates, count=sample, weights=weights or {}, rng=rng, least=least)
    return tuple(sorted(rule.draw(draw)))


def takes_count(sampler: str) -> bool:
    """Tell whether a sampler draws exactly as many sites as it is told.

    Raises:
        PlanError: no such sampler, or its parameters do not fit.
    """
    return load_sampler(sampler).takes_count


def check_sampler(plan: Plan) -> None:
    """Check that the plan's sampler exists and goes with the rest of the plan.

    Raises:
        PlanError: it does not; the text says what to change.
    """
    if takes_count(plan.sampler):
        return
    if plan.sample is not None:
        raise PlanError(f"sampler {plan.sampler!r} decides itself how many sites are asked; leave out sample")
    if plan.sampler.startswith("poisson") and (plan.quorum or 1) > 1:
        raise PlanError(
            f"sampler {plan.sampler!r} leaves to chance how many sites are asked, but quorum is {plan.quorum}; leave "
            "out quorum: then all that are asked must answer"
        )


@functools.cache
def load_sampler(spec: str) -> SiteSampler:
    """Return the sampler a plan names, such as ``"poisson:0.1"``.

    Raises:
        PlanError: no such sampler, or its parameters do not fit.
    """
    name, parameters = parse_choice(spec, "sampler")
    if name in _SAMPLERS:
        return _SAMPLERS[name](spec, parameters)
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        names = ", ".join(sorted({*_SAMPLERS, *installed}))
        raise PlanError(f"there is no sampler {spec!r}, only {names}")
    try:
        made: SiteSampler = installed[name].load()(*parameters)
    except (ValueError, TypeError) as error:
        raise PlanError(f"sampler {spec!r}: {error}") from error
    return made


class _Uniform:
    takes_count = True

    def draw(self, draw: Draw, /) -> tuple[SiteName, ...]:
        """Take `count` of them, each set equally likely."""
        if draw.count is None:
            return tuple(draw.candidates)
        return tuple(draw.rng.sample(draw.candidates, min(draw.count, len(draw.candidates))))


class _Fraction:
    takes_count = False

    def __init__(self, share: float) -> None:
        self._share = share

    def draw(self, draw: Draw, /) -> tuple[SiteName, ...]:
        """Take max(⌊C·N⌋, 1), each set equally likely."""
        # C as its author wrote it: 0.29 · 100 is 28.999…, and 29 sites are meant.
        present = len(draw.candidates)
        wanted = max(math.floor(self._share * present + 1e-9), 1, min(draw.least, present))
        return tuple(draw.rng.sample(draw.candidates, wanted))


class _Poisson:
    takes_count = False

    def __init__(self, probability: float) -> None:
        self._probability = probability

    def draw(self, draw: Draw, /) -> tuple[SiteName, ...]:
        """Take each by itself with probability Q."""
        enough = min(max(draw.least, 1), len(draw.candidates))
        for _ in range(_EMPTY_DRAWS):
            drawn = tuple(site for site in draw.candidates if draw.rng.random() < self._probability)
            if len(drawn) >= enough:
                return drawn
        return tuple(draw.rng.sample(draw.candidates, enough))


class _Weighted:
    takes_count = True

    def draw(self, draw: Draw, /) -> tuple[SiteName, ...]:
        """Take `count` of them, likelier with more examples."""
        # Keys u^(1/w), the `count` largest win; as −ln(u)/w, smallest, because u^(1/w) is 1.0 for large w.
        keys = {
            site: -math.log(1.0 - draw.rng.random()) / max(draw.weights.get(site, 1), 1) for site in draw.candidates
        }
        order = sorted(draw.candidates, key=lambda site: (keys[site], site))
        return tuple(order[: draw.count])


class _Available:
    takes_count = False

    def draw(self, draw: Draw, /) -> tuple[SiteName, ...]:
        """Take all."""
        return tuple(draw.candidates)


def _plain(made: type[_Uniform | _Weighted | _Available]) -> Callable[[str, Sequence[float]], SiteSampler]:
    def build(spec: str, parameters: Sequence[float]) -> SiteSampler:
        if parameters:
            raise PlanError(f"sampler {spec!r}: {spec.partition(':')[0]} takes no parameters")
        return made()

    return build


def _with_share(made: type[_Fraction | _Poisson]) -> Callable[[str, Sequence[float]], SiteSampler]:
    def build(spec: str, parameters: Sequence[float]) -> SiteSampler:
        if len(parameters) != 1 or not 0 < parameters[0] <= 1:
            name = spec.partition(":")[0]
            raise PlanError(f"sampler {spec!r}: expected one number, more than 0 and at most 1, such as {name}:0.1")
        return made(parameters[0])

    return build


_SAMPLERS: dict[str, Callable[[str, Sequence[float]], SiteSampler]] = {
    "uniform": _plain(_Uniform),
    "fraction": _with_share(_Fraction),
    "poisson": _with_share(_Poisson),
    "weighted": _plain(_Weighted),
    "available": _plain(_Available),
}
