"""One server step of any method, source to sink, tile by tile: what the aggregator and a simulation both call.

Rules, in order:

1. Plain FedAvg takes the way of `combine_model`, to the bit; that of a small model the shorter one of `small_models`.
2. Else every payload is combined by itself, ``delta`` by the plan's rule and the method's vectors by the weighted mean,
   with the weights of the method's server half; then `ServerHalf.step` sees each tile of model, means and slots once.
3. Tiles are always of `TILE_ELEMENTS`, sites in name order, arithmetic in float64 and in one order, whichever thread
   does it: the same bytes everywhere. What comes out is rounded once to each tensor's dtype.
4. Slots that are means over all sites are rescaled by N_old/N before the step, where N grew.
5. Buffers are combined as ever, with the weights of ``delta``.
6. Vectors and slots are float32 where the parameters are half precision, and read in the order of the parameters.

Memory is a few tiles per slot and payload, and a block per compressed payload, whatever the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.mean import WeightedMean
from federation.aggregation.tiles import TILE_ELEMENTS, TileSource, tiles_of
from federation.algorithms.server import ServerHalf
from federation.names import PayloadName
from federation.rounds import randomness
from federation.storage import small_models
from federation.storage.combination import (
    DELTA,
    Combined,
    SiteUpdate,
    combine_model,
    value_streams,
    walk,
)
from federation.storage.method_step import MethodStep
from federation.storage.opened_round import OpenedRound, open_round
from federation.storage.rule_state import KeepingCombiner, StoredVector
from federation.storage.tile_streams import PayloadTiles, TileStream
from federation.storage.vectors import in_order, widened_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.aggregation.combiner import Aggregation, Combiner
    from federation.algorithms.algorithm import Algorithm
    from federation.algorithms.server import ServerRound
    from federation.names import Digest, SiteName
    from federation.plan import ExperimentSpec
    from federation.storage.disk import Readable
    from federation.storage.memory import ModelSink, ModelSource, PlacedSink
    from federation.tensors import TensorSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSources:
    """What a round is made from, besides its updates.

    Attributes:
        model: the present model x, federated tensors.
        slots: the method's state, each with the schema of the parameters, widened.
        master: float32 master of half-precision parameters; None if there are none.
        rule_state: the rule's vectors of the round before, each with the schema of the parameters.
        bases: model each site started from, for methods that need it.
        total: N of the round before; 0 before the first.
    """

    model: ModelSource
    slots: Mapping[str, ModelSource] = field(default_factory=dict)
    master: ModelSource | None = None
    rule_state: Mapping[str, ModelSource] = field(default_factory=dict)
    bases: Mapping[SiteName, ModelSource] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSinks:
    """What a round writes; finished by `combine_round`, committed or aborted by the caller.

    Attributes:
        model: for the next model.
        slots: for the next slots.
        master: for the next master; None if there is none.
        rule_state: for the rule's next vectors.
    """

    model: ModelSink
    slots: Mapping[str, PlacedSink] = field(default_factory=dict)
    master: ModelSink | None = None
    rule_state: Mapping[str, ModelSink] = field(default_factory=dict)


def combine_round(
    *,
    algorithm: Algorithm,
    spec: ExperimentSpec,
    aggregation: Aggregation,
    round: ServerRound,
    updates: Sequence[SiteUpdate],
    sources: RoundSources,
    sinks: RoundSinks,
    scores_later: bool = False,
) -> Combined:
    """Write the candidate for the next model and the next slots. Blocks; call it in a thread.

    Args:
        algorithm: the method.
        spec: schemas, and how each payload is compressed.
        aggregation: the plan's rule and what comes before it, for ``delta``.
        round: number, plan, sites (those of `updates`, in name order), N and η_g; norms and damping are filled in here.
        updates: what was admitted, payloads as they came, in any order.
        sources: the present model and state.
        sinks: for the next ones.
        scores_later: scores of small models are computed when somebody first looks at them.

    Raises:
        ValueError: no update has a weight above 0, a payload is missing or not well-formed, or sites differ.
        PlanError: the result is not finite in the dtype of a tensor, or there are too few updates for the plan's rule.
        StorageError: the disk failed.
    """
    ready = open_round(
        algorithm=algorithm,
        spec=spec,
        round=round,
        updates=updates,
        model=sources.model,
        bases=sources.bases,
        scores_later=scores_later,
    )
    is_plain = type(ready.server) is ServerHalf and not sources.slots and ready.round.learning_rate == 1.0
    if not is_plain:
        rule = _rule_of(aggregation, ready.round, sources, sinks)
        combined = _take_method_step(algorithm, ready, rule, sources, sinks)
    elif small_models.is_small(sources.model.schema, aggregation, len(updates)):
        combined = small_models.average(
            model=sources.model,
            writer=sinks.model,
            updates=ready.updates,
            weights=ready.weights[DELTA],
            aggregation=aggregation,
            scoring=ready.scoring,
        )
    else:
        combined = _average(ready, _rule_of(aggregation, ready.round, sources, sinks), sources, sinks)
    for writer in sinks.rule_state.values():
        writer.finish()
    return combined


def _rule_of(aggregation: Aggregation, round: ServerRound, sources: RoundSources, sinks: RoundSinks) -> KeepingCombiner:
    """Return what combines ``delta``, keeping what the rule keeps."""
    combiner = combiner_of(aggregation, round, sources.rule_state)
    return KeepingCombiner(combiner, aggregation.rule, sources.rule_state, sinks.rule_state)


def _average(ready: OpenedRound, rule: KeepingCombiner, sources: RoundSources, sinks: RoundSinks) -> Combined:
    """Rule 1."""
    weighed = [
        SiteUpdate(site=update.site, payloads=update.payloads, weight=weight)
        for update, weight in zip(ready.updates, ready.weights[DELTA], strict=True)
    ]
    return combine_model(
        model=sources.model,
        writer=sinks.model,
        rule=rule,
        updates=weighed,
        master=sources.master,
        master_writer=sinks.master,
        scoring=ready.scoring,
    )


def _take_method_step(
    algorithm: Algorithm, ready: OpenedRound, rule: KeepingCombiner, sources: RoundSources, sinks: RoundSinks
) -> Combined:
    """Rule 2."""
    schema, weights = sources.model.schema, ready.weights[DELTA]
    changes = _changes(algorithm, ready, rule, schema.parameters)
    scalars = ready.server.begin(ready.round)
    rescaling = _rescaling(algorithm, sources.total, ready.round.total)
    step = MethodStep(ready.server, scalars, sources.slots, sinks.slots, rescaling, schema.parameters)
    squares = walk(
        model=sources.model,
        writer=sinks.model,
        changes=changes,
        values=value_streams(ready.updates, weights, schema.buffers, TILE_ELEMENTS),
        step=step,
        master=sources.master,
        master_writer=sinks.master,
        tile_elements=TILE_ELEMENTS,
    )
    return Combined(
        digest=sinks.model.finish(),
        update_norm=math.sqrt(squares),
        weights=tuple(weights),
        scores=ready.scoring.finish(rule.report),
        slot_digests=step.finish(),
        scalars={name: value for name, value in scalars.items() if math.isfinite(value)},
        report=rule.report,
    )


def combiner_of(aggregation: Aggregation, round: ServerRound, state: Mapping[str, Readable]) -> Combiner:
    """Return what combines ``delta`` in a round: rule and pre-aggregations of the plan, with the round's randomness."""
    seed, number = round.plan.seed, round.number
    vectors = {name: StoredVector(stored) for name, stored in state.items()}
    return aggregation.for_round(lambda purpose: randomness.stream(seed, number, "", purpose), vectors)


def write_slot(writer: ModelSink, value: float) -> Digest:
    """Write a slot that has the same value everywhere, as before the first round. The caller commits."""
    for tile in tiles_of(writer.schema, floats=True):
        writer.append(np.full(tile.elements, value, dtype=tile.dtype.numpy).view(np.uint8).data)
    return writer.finish()


def read_scalars(schema: TensorSchema, payload: Readable) -> dict[str, float]:
    """Return the numbers of a payload ``scalars``.

    Args:
        schema: float64 tensors without dimensions.
        payload: its flat buffer.
    """
    values = np.empty(len(schema), dtype="<f8")
    payload.pread_into(0, values.view(np.uint8).data)
    return {tensor.name: float(value) for tensor, value in zip(schema, values, strict=True)}


def _changes(
    algorithm: Algorithm, ready: OpenedRound, rule: KeepingCombiner, schema: TensorSchema
) -> dict[str, TileStream]:
    """Return the combined change of each payload, tile by tile."""
    updates, weights, scoring = ready.updates, ready.weights, ready.scoring
    streams: dict[str, TileStream] = {}
    for name in (DELTA, *map(PayloadName, algorithm.vectors)):
        payloads = [update.payloads[name] for update in updates]
        tiles = tiles_of(schema, floats=True)
        if name != DELTA:
            payloads, tiles = [in_order(payload, schema) for payload in payloads], widened_tiles(tiles)
        sites = [update.site for update in updates]
        source: TileSource = PayloadTiles(sites, weights.get(name, weights[DELTA]), payloads, tiles)
        results = scoring.watch(rule, source) if name == DELTA else WeightedMean().combine(source)
        streams[name] = TileStream(source, results)
    return streams


def _rescaling(algorithm: Algorithm, previous: int, total: int) -> dict[str, float]:
    if not previous or previous == total:
        return {}
    return dict.fromkeys(algorithm.rescaled, previous / total)
