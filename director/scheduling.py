"""Which queued experiments start now, with which sites, and why the others still wait.

Rules, in order:

1. A shard matches an experiment if it is of the kind the experiment names and, where the experiment says them, has its
   sample and target shape. All matching shards of one site are offered as one participant.
2. An experiment can start when at least as many online sites match as its plan wants; all that match are asked.
3. At most `slots` experiments run at once. The queue is first in, first out, but one that cannot start is passed over:
   it must not hold up others for sites it may never get.
4. Every experiment that does not start gets a sentence that says why, for its owner to read.

Pure: who is online, what is offered and how many run are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from federation.names import ExperimentId, ShardName, SiteName

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A shard as its envoy offers it; shapes are of one sample, examples are counts."""

    name: ShardName
    kind: str
    train_examples: int
    validation_examples: int
    sample_shape: Shape
    target_shape: Shape
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """An envoy: its name, whether it has a session now, and what it offers."""

    name: SiteName
    online: bool
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What an experiment needs to start.

    Attributes:
        experiment: its id.
        kind: shard kind a site must offer.
        sites: sites its plan wants before the first round.
        sample_shape: shape of one sample its model takes; None: any.
        target_shape: shape of one target; None: any.
    """

    experiment: ExperimentId
    kind: str
    sites: int
    sample_shape: Shape | None = None
    target_shape: Shape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A site that can take part, with its matching shards and their examples in all."""

    site: SiteName
    shards: tuple[ShardName, ...]
    train_examples: int
    validation_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now: experiments to start in order, with the sites to ask, and why each other one waits."""

    start: Mapping[ExperimentId, tuple[Match, ...]]
    waiting: Mapping[ExperimentId, str]


def match(need: Need, site: Site) -> Match | None:
    """Return how `site` can take part in the experiment, whether it is online or not; None if it cannot."""
    shards = [shard for shard in site.shards if _mismatch(need, shard) is None]
    if not shards:
        return None
    shards.sort(key=lambda shard: shard.name)
    return Match(
        site=site.name,
        shards=tuple(shard.name for shard in shards),
        train_examples=sum(shard.train_examples for shard in shards),
        validation_examples=sum(shard.validation_examples for shard in shards),
    )


def decide(queue: Sequence[Need], sites: Iterable[Site], *, running: int, slots: int) -> Decision:
    """Decide which experiments start now.

    Args:
        queue: queued experiments, oldest first.
        sites: every envoy the director knows.
        running: experiments that take a slot now.
        slots: experiments that may run at once.
    """
    everyone = sorted(sites, key=lambda site: site.name)
    free = slots - running
    start: dict[ExperimentId, tuple[Match, ...]] = {}
    waiting: dict[ExperimentId, str] = {}
    for need in queue:
        matches = tuple(found for site in everyone if site.online and (found := match(need, site)) is not None)
        if len(matches) < need.sites:
            waiting[need.experiment] = _explain_sites(need, everyone, len(matches))
        elif free <= 0:
            waiting[need.experiment] = f"waits for a slot: {slots} of {slots} experiments are running"
        else:
            start[need.experiment] = matches
            free -= 1
    return Decision(start=start, waiting=waiting)


def _mismatch(need: Need, shard: Shard) -> str | None:
    if shard.kind != need.kind:
        return f"is of kind {shard.kind}"
    if need.sample_shape is not None and shard.sample_shape != need.sample_shape:
        return f"has samples of shape {list(shard.sample_shape)}, the model takes {list(need.sample_shape)}"
    if need.target_shape is not None and shard.target_shape != need.target_shape:
        return f"has targets of shape {list(shard.target_shape)}, the model takes {list(need.target_shape)}"
    return None


def _explain_sites(need: Need, sites: Sequence[Site], matching: int) -> str:
    text = (
        f"waits for sites: {matching} of the {need.sites} it wants {'is' if matching == 1 else 'are'} online "
        f"with a matching shard of kind {need.kind}"
    )
    details = []
    offline = [site.name for site in sites if not site.online and match(need, site) is not None]
    if offline:
        details.append(f"offline: {_some(offline)}")
    wrong = [
        f"{site.name}/{shard.name} {_mismatch(need, shard)}"
        for site in sites
        for shard in site.shards
        if shard.kind == need.kind and _mismatch(need, shard) is not None
    ]
    if wrong:
        details.append(_some(wrong))
    kinds = sorted({shard.kind for site in sites for shard in site.shards})
    if need.kind not in kinds:
        details.append(f"no envoy offers this kind; offered are {_some(kinds)}" if kinds else "no envoy offers shards")
    return "; ".join([text, *details])


def _some(items: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
