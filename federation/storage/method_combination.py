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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.mean import WeightedMean
from federation.aggregation.scores import KRUM
from federation.aggregation.tiles import TILE_ELEMENTS, Array, Tile, TileSource, tiles_of
from federation.algorithms.server import ServerHalf, ServerTile
from federation.compression.frame import payload_damping
from federation.compression.registry import load_codec
from federation.names import PayloadName
from federation.rounds import randomness
from federation.storage import small_models
from federation.storage.combination import (
    DELTA,
    Combined,
    SiteUpdate,
    combine_model,
    site_tiles,
    value_streams,
    walk,
)
from federation.storage.encoded import IDENTITY, decoded, rebased
from federation.storage.norms import squared_norm
from federation.storage.rounding import Rounder
from federation.storage.rule_state import KeepingCombiner, StoredVector
from federation.storage.scoring import Scoring
from federation.storage.tile_streams import PayloadTiles, TileStream
from federation.storage.vectors import append_in_order, in_order, widened, widened_tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.aggregation.combiner import Aggregation, Combiner
    from federation.algorithms.algorithm import Algorithm
    from federation.algorithms.server import ServerRound, SiteFacts
    from federation.names import Digest, SiteName
    from federation.plan import ExperimentSpec, PayloadPlan
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
    ready = _prepare(
        algorithm=algorithm,
        spec=spec,
        round=round,
        updates=updates,
        sources=sources,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
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


def _prepare(
    *,
    algorithm: Algorithm,
    spec: ExperimentSpec,
    round: ServerRound,
    updates: Sequence[SiteUpdate],
    sources: RoundSources,
    scores_later: bool,
) -> _Ready:
    """Check and open the updates, and weigh the sites."""
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
        opened = [_rebased(update, sources.model, sources.bases[update.site]) for update in opened]
    if algorithm.needs_norms:
        round = replace(round, sites=_with_norms(round, opened, sources.model.schema.parameters))
    if (damping := _damping(spec)) != round.damping:
        round = replace(round, damping=damping)
    server = algorithm.server()
    quarantine = spec.plan.quarantine
    return _Ready(
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


def _rule_of(aggregation: Aggregation, round: ServerRound, sources: RoundSources, sinks: RoundSinks) -> KeepingCombiner:
    """Return what combines ``delta``, keeping what the rule keeps."""
    combiner = combiner_of(aggregation, round, sources.rule_state)
    return KeepingCombiner(combiner, aggregation.rule, sources.rule_state, sinks.rule_state)


def _average(ready: _Ready, rule: KeepingCombiner, sources: RoundSources, sinks: RoundSinks) -> Combined:
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
    algorithm: Algorithm, ready: _Ready, rule: KeepingCombiner, sources: RoundSources, sinks: RoundSinks
) -> Combined:
    """Rule 2."""
    schema, weights = sources.model.schema, ready.weights[DELTA]
    changes = _changes(algorithm, ready, rule, schema.parameters)
    scalars = ready.server.begin(ready.round)
    rescaling = _rescaling(algorithm, sources.total, ready.round.total)
    step = _MethodStep(ready.server, scalars, sources.slots, sinks.slots, rescaling, schema.parameters)
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


def _changes(algorithm: Algorithm, ready: _Ready, rule: KeepingCombiner, schema: TensorSchema) -> dict[str, TileStream]:
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
