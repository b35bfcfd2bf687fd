"""A round whose updates can be read: what combining needs to know of them before it takes the first tile.

Payloads that came compressed decode as they are read, changes from an older model become changes from the present one,
norms and damping are filled in where the method asks for them, and the method's server half has weighed the sites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from federation.aggregation.scores import KRUM
from federation.aggregation.tiles import TILE_ELEMENTS
from federation.compression.frame import payload_damping
from federation.compression.registry import load_codec
from federation.storage.combination import DELTA, SiteUpdate, site_tiles
from federation.storage.encoded import IDENTITY, decoded, rebased
from federation.storage.norms import squared_norm
from federation.storage.rounding import Rounder
from federation.storage.scoring import Scoring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.algorithms.algorithm import Algorithm
    from federation.algorithms.server import ServerHalf, ServerRound, SiteFacts
    from federation.names import SiteName
    from federation.plan import ExperimentSpec, PayloadPlan
    from federation.storage.memory import ModelSource
    from federation.tensors import TensorSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRound:
    """A round whose updates can be read.

    Attributes:
        server: the method's server half.
        round: with norms and damping.
        updates: in name order, payloads readable as flat buffers, changes from the present model.
        weights: of each site, by payload.
        scoring: watches the sites' changes go by.
    """

    server: ServerHalf
    round: ServerRound
    updates: list[SiteUpdate]
    weights: Mapping[str, Sequence[float]]
    scoring: Scoring


def open_round(
    *,
    algorithm: Algorithm,
    spec: ExperimentSpec,
    round: ServerRound,
    updates: Sequence[SiteUpdate],
    model: ModelSource,
    bases: Mapping[SiteName, ModelSource],
    scores_later: bool,
) -> OpenedRound:
    """Check and open the updates, and weigh the sites.

    Args:
        algorithm: the method.
        spec: schemas, and how each payload is compressed.
        round: as its sites and the plan make it.
        updates: as admitted, in any order.
        model: the present one.
        bases: model each site started from, for methods that need it.
        scores_later: as for `combine_round`.

    Raises:
        ValueError: a payload is missing or not well-formed, or sites differ.
        StorageError: the disk failed.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if [update.site for update in ordered] != [facts.site for facts in round.sites]:
        raise ValueError("the updates are not those of the round's sites, in name order")
    planned = spec.uploads()
    names = {plan.name for plan in planned}
    if all(plan.codec == IDENTITY for plan in planned) and all(update.payloads.keys() == names for update in ordered):
        opened = ordered
    else:
        opened = [_opened(update, planned) for update in ordered]
    if algorithm.needs_base:
        opened = [_rebased(update, model, bases[update.site]) for update in opened]
    if algorithm.needs_norms:
        round = replace(round, sites=_with_norms(round, opened, model.schema.parameters))
    if (damping := _damping(spec)) != round.damping:
        round = replace(round, damping=damping)
    server = algorithm.server()
    quarantine = spec.plan.quarantine
    return OpenedRound(
        server=server,
        round=round,
        updates=opened,
        weights=server.weights(round),
        scoring=Scoring(
            byzantine=spec.plan.byzantine,
            needs_krum=quarantine is not None and quarantine.score == KRUM,
            is_late=scores_later,
        ),
    )


def _damping(spec: ExperimentSpec) -> float:
    if spec.plan.compression == IDENTITY:
        return 1.0
    return payload_damping(spec.schema_.parameters.widened, load_codec(spec.plan.compression))


def _opened(update: SiteUpdate, payload_plans: Sequence[PayloadPlan]) -> SiteUpdate:
    """Return the update with every payload readable as its flat buffer."""
    payloads = {}
    for planned in payload_plans:
        if planned.name not in update.payloads:
            raise ValueError(f"the update of {update.site} lacks payload {planned.name!r}")
        payloads[planned.name] = decoded(update.payloads[planned.name], planned)
    return SiteUpdate(site=update.site, payloads=payloads)


def _rebased(update: SiteUpdate, model: ModelSource, start: ModelSource) -> SiteUpdate:
    return replace(update, payloads={**update.payloads, DELTA: rebased(update.delta, model, start)})


def _with_norms(round: ServerRound, updates: Sequence[SiteUpdate], schema: TensorSchema) -> tuple[SiteFacts, ...]:
    """One more pass over the changes: ‖Δ_i‖₂ of each site, whatever pieces it came in."""
    tiles = site_tiles(updates, [], [update.delta for update in updates], schema, TILE_ELEMENTS)
    rounder = Rounder(TILE_ELEMENTS)
    found = []
    for facts, update in zip(round.sites, updates, strict=True):
        squares = math.fsum(squared_norm(rounder.read(update.delta, tile)) for tile in tiles.tiles)
        found.append(replace(facts, norm=math.sqrt(squares)))
    return tuple(found)
