"""One server step of any method, source to sink, tile by tile: what the aggregator and a simulation both call.

Rules, in order:

1. Plain FedAvg takes the way of `combine_model`, to the bit.
2. Else every payload is combined by itself, ``delta`` by the plan's rule and the method's vectors by the weighted mean,
   with the weights of the method's server half; then `ServerHalf.step` sees each tile of model, means and slots once.
3. Tiles are always of `TILE_ELEMENTS`, sites in name order, arithmetic in float64 in one thread: the same bytes
   everywhere. What comes out is rounded once to each tensor's dtype.
4. Slots that are means over all sites are rescaled by N_old/N before the step, where N grew.
5. Buffers are combined as ever, with the weights of ``delta``.
6. Vectors and slots are float32 where the parameters are half precision, and read in the order of the parameters.

Memory is a few tiles per slot and payload, and a block per compressed payload, whatever the model.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.mean import WeightedMean
from federation.aggregation.tiles import TILE_ELEMENTS, Array, Tile, TileSource, tiles_of
from federation.algorithms.server import ServerHalf, ServerTile
from federation.compression.frame import payload_damping
from federation.compression.registry import load_codec
from federation.names import PayloadName
from federation.rounds import randomness
from federation.storage.combination import (
    DELTA,
    Combined,
    SiteUpdate,
    combine_model,
    site_tiles,
    squared_norm,
    value_streams,
    walk,
)
from federation.storage.encoded import IDENTITY, decoded, rebased
from federation.storage.rounding import Rounder
from federation.storage.rule_state import KeepingCombiner, StoredVector
from federation.storage.scoring import Scoring
from federation.storage.tile_streams import PayloadTiles, TileStream
from federation.storage.vectors import append_in_order, in_order, widened, widened_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.aggregation.combiner import Aggregation, Combiner
    from federation.aggregation.rule import Combines
    from federation.algorithms.algorithm import Algorithm
    from federation.algorithms.server import ServerRound, SiteFacts
    from federation.names import Digest, SiteName
    from federation.plan import ExperimentSpec, PayloadPlan
    from federation.storage.disk import Readable
    from federation.storage.memory import ModelSink, ModelSource, PlacedSink
    from federation.tensors import TensorSchema


def combine_round(
    *,
    algorithm: Algorithm,
    round: ServerRound,
    spec: ExperimentSpec,
    model: ModelSource,
    slots: Mapping[str, ModelSource],
    writer: ModelSink,
    slot_writers: Mapping[str, PlacedSink],
    aggregation: Aggregation,
    updates: Sequence[SiteUpdate],
    base: Mapping[SiteName, ModelSource] | None = None,
    previous_total: int = 0,
    master: ModelSource | None = None,
    master_writer: ModelSink | None = None,
    rule_state: Mapping[str, ModelSource] | None = None,
    rule_writers: Mapping[str, ModelSink] | None = None,
    scores_later: bool = False,
) -> Combined:
    """Write the candidate for the next model and the next slots. Blocks; call it in a thread.

    Args:
        algorithm: the method.
        round: number, plan, sites (those of `updates`, in name order), N and η_g; norms and damping are filled in here.
        spec: schemas, and how each payload is compressed.
        model: the present model x, federated tensors.
        slots: the method's state, each with the schema of the parameters, widened.
        writer: for the next model; finished here, committed or aborted by the caller.
        slot_writers: for the next slots; finished here.
        aggregation: the plan's rule and what comes before it, for ``delta``.
        updates: what was admitted, payloads as they came, in any order.
        base: model each site started from, for methods that need it.
        previous_total: N of the round before; 0 before the first.
        master: float32 master of half-precision parameters.
        master_writer: for the next master; finished here.
        rule_state: the rule's vectors of the round before, each with the schema of the parameters.
        rule_writers: for the next ones; finished here.
        scores_later: scores of small models are computed when somebody first looks at them.

    Raises:
        ValueError: no update has a weight above 0, a payload is missing or not well-formed, or sites differ.
        PlanError: the result is not finite in the dtype of a tensor, or there are too few updates for the plan's rule.
        StorageError: the disk failed.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if [update.site for update in ordered] != [facts.site for facts in round.sites]:
        raise ValueError("the updates are not those of the round's sites, in name order")
    planned = spec.uploads()
    opened = [_opened(update, planned) for update in ordered]
    if algorithm.needs_base:
        opened = [_rebased(update, model, (base or {})[update.site]) for update in opened]
    server = algorithm.server()
    if algorithm.needs_norms:
        round = replace(round, sites=_with_norms(round, opened, model.schema.parameters))
    round = replace(round, damping=_damping(spec))
    weights = server.weights(round)
    combiner = combiner_of(aggregation, round, rule_state or {})
    rule = KeepingCombiner(combiner, aggregation.rule, rule_state or {}, rule_writers or {})
    delta_weights = weights[DELTA]
    is_plain = spec.plan.compression == IDENTITY and not algorithm.needs_base
    scoring = Scoring(byzantine=spec.plan.byzantine, is_shared=is_plain, is_late=scores_later)
    if type(server) is ServerHalf and not slots and round.learning_rate == 1.0:
        weighed = [
            SiteUpdate(site=update.site, payloads=update.payloads, weight=weight)
            for update, weight in zip(opened, delta_weights, strict=True)
        ]
        combined = combine_model(
            model=model,
            writer=writer,
            rule=rule,
            updates=weighed,
            master=master,
            master_writer=master_writer,
            scoring=scoring,
        )
        _finish(rule_writers)
        return combined
    changes = _changes(algorithm, weights, rule, opened, model.schema.parameters, scoring)
    scalars = server.begin(round)
    rescaling = _rescaling(algorithm, previous_total, round.total)
    step = _MethodStep(server, scalars, slots, slot_writers, rescaling, model.schema.parameters)
    squares = walk(
        model=model,
        writer=writer,
        changes=changes,
        values=value_streams(opened, delta_weights, model.schema.buffers, TILE_ELEMENTS),
        step=step,
        master=master,
        master_writer=master_writer,
        tile_elements=TILE_ELEMENTS,
    )
    _finish(rule_writers)
    return Combined(
        digest=writer.finish(),
        update_norm=math.sqrt(squares),
        weights=tuple(delta_weights),
        scores=scoring.finish(rule.report),
        slot_digests=step.finish(),
        scalars={name: value for name, value in scalars.items() if math.isfinite(value)},
        report=combiner.report,
    )


def _finish(writers: Mapping[str, ModelSink] | None) -> None:
    for writer in (writers or {}).values():
        writer.finish()


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


def _changes(
    algorithm: Algorithm,
    weights: Mapping[str, Sequence[float]],
    rule: Combines,
    updates: Sequence[SiteUpdate],
    schema: TensorSchema,
    scoring: Scoring,
) -> dict[str, TileStream]:
    streams: dict[str, TileStream] = {}
    for name in (DELTA, *map(PayloadName, algorithm.vectors)):
        payloads = [update.payloads[name] for update in updates]
        tiles = tiles_of(schema, floats=True)
        if name != DELTA:
            payloads, tiles = [in_order(payload, schema) for payload in payloads], widened_tiles(tiles)
        sites = [update.site for update in updates]
        source: TileSource = PayloadTiles(sites, weights.get(name, weights[DELTA]), payloads, tiles)
        combiner: Combines = rule if name == DELTA else WeightedMean()
        results = combiner.combine(source)
        streams[name] = TileStream(source, scoring.watch(source, results) if name == DELTA else results)
    return streams


def _rescaling(algorithm: Algorithm, previous: int, total: int) -> dict[str, float]:
    if not previous or previous == total:
        return {}
    return dict.fromkeys(algorithm.rescaled, previous / total)


class _MethodStep:
    """One pass of a server half: reads each slot beside the model, writes the next one. Implements `Step`."""

    def __init__(
        self,
        server: ServerHalf,
        scalars: Mapping[str, float],
        slots: Mapping[str, ModelSource],
        writers: Mapping[str, PlacedSink],
        rescaling: Mapping[str, float],
        parameters: TensorSchema,
    ) -> None:
        if slots.keys() != writers.keys():
            raise ValueError(f"slots {sorted(slots)} are read, {sorted(writers)} are written")
        self._server = server
        self._scalars = scalars
        self._slots = {name: in_order(slot, parameters) for name, slot in slots.items()}
        self._writers = writers
        self._sinks = {name: append_in_order(writer, parameters) for name, writer in writers.items()}
        self._offset = 0
        self._rescaling = rescaling
        self._rounders = {name: Rounder(TILE_ELEMENTS, f"state {name!r} of the method") for name in slots}
        self._before = np.empty(TILE_ELEMENTS, dtype=np.float64)

    def __call__(self, x: Array, means: Mapping[str, Array], piece: Tile, start: int, /) -> float:
        before = self._before[: x.size]
        np.copyto(before, x)
        state = {}
        wide = widened(piece, self._offset)
        self._offset += wide.nbytes
        for name, slot in self._slots.items():
            state[name] = self._rounders[name].read(slot, wide)
            if name in self._rescaling:
                np.multiply(state[name], self._rescaling[name], out=state[name])
        # A method that overflows is told of when its result is rounded, not by a warning on the way.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._server.step(ServerTile(x=x, mean=means, state=state, start=start), self._scalars)
            np.subtract(x, before, out=before)
        for name, rounder in self._rounders.items():
            self._sinks[name].append(rounder.round(wide, state[name]).view(np.uint8).data)
        return squared_norm(before)

    def finish(self) -> dict[str, Digest]:
        """Finish the slots and return their digests."""
        return {name: writer.finish() for name, writer in self._writers.items()}
