"""The server's models in a simulation: the present one, the candidate, and the state of the method beside them.

What is broadcast lies in the arena, twice: a candidate is written into the generation that is not in use, and a commit
changes places. What stays at the server (slots that are not broadcast, masters of half-precision parameters) lies in
memory of our own, twice likewise. The arithmetic is `combine_round`, the aggregator's. Where the plan compresses what
the server sends, the arena has what sites hold, x̂, and the server's own model x is in our memory; the step from one x̂
to the next is made and applied as an aggregator and its sites do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from federation.aggregation.registry import load_aggregation
from federation.aggregation.tiles import ArrayTiles
from federation.algorithms.server import ServerRound, SiteFacts
from federation.names import PayloadName
from federation.rounds.schedules import server_rate
from federation.simulation.candidates import Candidate, StepSize
from federation.simulation.memory import GENERATIONS, Payload
from federation.storage import combination
from federation.storage.encoded import IDENTITY, RoleOf
from federation.storage.memory import MemoryBytes, MemoryModel, MemoryWriter
from federation.storage.method_combination import (
    RoundSinks,
    RoundSources,
    combine_round,
    combiner_of,
    read_scalars,
    write_slot,
)
from federation.storage.rule_state import state_name
from federation.storage.steps import apply_step, write_step
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec, pack
from federation.training.exchange import MODEL, OPTIMIZER, SCALARS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.algorithms import Algorithm
    from federation.names import Digest, RoundNumber, SiteName
    from federation.plan import ExperimentSpec
    from federation.simulation.book import Update
    from federation.simulation.memory import Arena
    from federation.tensors.buffers import Array
    from federation.training.exchange import Buffer

_MASTER = PayloadName("master")
HELD = PayloadName("held")
"""What sites hold, where it is not the model itself."""


class Models:
    """Models and server state of one simulation.

    Args:
        spec: the experiment.
        algorithm: its method.
        arena: where broadcast payloads lie.
        arrays: initial value of every tensor of the model.

    Attributes:
        generation: that sites train from.
        sent: digest and bytes of each payload a training task brings.
        sent_step: the step to its model; None if there is none.
        candidate_step: the same of the candidate.
        total: N of the last committed round; 0 before the first.
        versions: older models that updates have to be rebased from, by the round in which sites were asked.
    """

    def __init__(self, spec: ExperimentSpec, algorithm: Algorithm, arena: Arena, arrays: Mapping[str, Array]) -> None:
        self._spec = spec
        self._algorithm = algorithm
        self._arena = arena
        self._aggregation = load_aggregation(spec.plan)
        self._schema = spec.schema_
        self._base = {each.name: arrays[each.name].copy() for each in self._schema.local}
        self._uploads = {plan.name: plan.schema for plan in spec.uploads()}
        self._own = self._make_own()
        self.versions: dict[RoundNumber, bytes] = {}
        self.generation = 0
        self.total = 0
        self.has_optimizer = False
        self.candidate: Candidate | None = None
        self.sent_step: StepSize | None = None
        self.candidate_step: StepSize | None = None
        self._begin(arrays)
        self.sent = self._describe(0)
        self._next_sent = self.sent

    # --- what is there

    @property
    def slots(self) -> tuple[PayloadName, ...]:
        """Names of the method's server state."""
        return tuple(PayloadName(name) for name in self._algorithm.slots)

    @property
    def rule_state(self) -> dict[str, PayloadName]:
        """What the rule's vectors are called here, by their own name."""
        return {name: PayloadName(state_name(name)) for name in self._aggregation.rule.state}

    @property
    def next_generation(self) -> int:
        """The generation a candidate is written into, and evaluated from."""
        return (self.generation + 1) % GENERATIONS

    @property
    def candidate_sent(self) -> Mapping[PayloadName, tuple[bytes, int]]:
        """Digest and bytes of what an evaluation task brings: the candidate."""
        return {MODEL: self._next_sent[MODEL]}

    def names(self) -> tuple[PayloadName, ...]:
        """Return everything a checkpoint needs, the model first."""
        optimizer = (OPTIMIZER,) if self.has_optimizer else ()
        held = (HELD,) if MODEL in self._own else ()
        master = (_MASTER,) if _MASTER in self._own else ()
        return (MODEL, *optimizer, *held, *self.slots, *self.rule_state.values(), *master)

    def schema_of(self, name: PayloadName) -> TensorSchema:
        """Return the layout of one of `names`."""
        if name in self._own:
            return self._own[name][0]
        return self._arena.layout.broadcast[MODEL if name == HELD else name]

    def model(self, name: PayloadName = MODEL, *, is_next: bool = False) -> MemoryModel:
        """Return one of `names`, of the present generation or the next; it is overwritten two commits later."""
        return MemoryModel(
            self.schema_of(name), self._memory(name, self.next_generation if is_next else self.generation)
        )

    def arrays(self) -> dict[str, Array]:
        """Return a copy of the whole present model, local tensors as they were submitted."""
        federated = self.model().arrays()
        return {
            each.name: (federated[each.name] if each.name in federated else self._base[each.name]).copy()
            for each in self._schema
        }

    # --- rounds

    def keep_version(self, round_number: RoundNumber) -> None:
        """Remember the present model as what sites asked in this round train from, if the method asks for it."""
        if self._algorithm.needs_base and round_number not in self.versions:
            self.versions[round_number] = bytes(self._memory(MODEL, self.generation))

    def forget_versions(self, needed: set[RoundNumber]) -> None:
        """Forget models that nobody trains from any more."""
        for round_number in self.versions.keys() - needed:
            del self.versions[round_number]

    def combine(self, round_number: RoundNumber, updates: Sequence[Update], total: int) -> None:
        """Make the candidate of a round.

        Args:
            round_number: the round.
            updates: what it is made of, in name order.
            total: N.

        Raises:
            PlanError: the result is not finite.
            ValueError: a payload is not well-formed.
        """
        payloads = {update.site: self._payloads(update) for update in updates}
        facts = tuple(self._facts(update, round_number, payloads[update.site]) for update in updates)
        server_round = self._round(round_number, facts, total)
        combined = combine_round(
            algorithm=self._algorithm,
            spec=self._spec,
            aggregation=self._aggregation,
            round=server_round,
            updates=[combination.SiteUpdate(site=site, payloads=parts) for site, parts in payloads.items()],
            sources=self._sources(updates),
            sinks=self._sinks(),
            scores_later=True,
        )
        weights = combined.weights or tuple(self._algorithm.server().weights(server_round)["delta"])
        if OPTIMIZER in self._uploads:
            rows = [(site, weight, payloads[site][OPTIMIZER]) for site, weight in zip(payloads, weights, strict=True)]
            combination.combine_values(writer=self._writer(OPTIMIZER), updates=rows)
        self.candidate = Candidate(
            digest=combined.digest,
            update_norm=combined.update_norm,
            weights=weights,
            scores=combined.scores,
            report=combined.report,
        )
        self._next_total = total
        self.candidate_step = None
        sent = self._take_step(round_number) if MODEL in self._own else combined.digest
        self._next_sent = self._describe(self.next_generation, model=sent)

    def outcome(
        self, round_number: RoundNumber, updates: Sequence[Update], deltas: Mapping[SiteName, Array], total: int
    ) -> Array:
        """Return what the rule in force would make of these changes, float64; nothing is kept.

        Args:
            round_number: the round.
            updates: whose they are, in name order.
            deltas: change of each, as one vector in buffer order.
            total: N.

        Raises:
            ValueError: the rule takes no such round.
        """
        facts = tuple(
            replace(
                self._facts(update, round_number, self._payloads(update)),
                norm=float(np.linalg.norm(deltas[update.site])),
            )
            for update in updates
        )
        server_round = self._round(round_number, facts, total)
        weights = self._algorithm.server().weights(server_round)["delta"]
        sites = [update.site for update in updates]
        size = len(deltas[sites[0]])
        schema = TensorSchema.of([TensorSpec(name="delta", dtype=DType.FLOAT64, shape=(size,))])
        buffers: dict[SiteName, bytes | bytearray] = {
            site: np.asarray(deltas[site], dtype="<f8").tobytes() for site in sites
        }
        tiles = ArrayTiles(schema, buffers, dict(zip(sites, weights, strict=True)))
        state = {own: self._widened(name) for own, name in self.rule_state.items()}
        combiner = combiner_of(self._aggregation, server_round, state)
        result = np.empty(size, dtype=np.float64)
        for tile, values in combiner.combine(tiles):
            result[tile.offset // 8 : tile.offset // 8 + tile.elements] = values
        return result

    def _widened(self, name: PayloadName) -> Payload:
        """Return one of the rule's vectors as float64, laid out like the changes that `outcome` is given."""
        memory = self._memory(name, self.generation)
        parts = [
            np.frombuffer(memory[each.offset : each.offset + each.nbytes], dtype=each.dtype.numpy).astype("<f8")
            for each in self._schema.parameters.segments
        ]
        return Payload(memoryview(np.concatenate(parts).tobytes()))

    def commit(self) -> None:
        """Let the candidate be the model that sites train from."""
        self.generation = self.next_generation
        self.total = self._next_total
        self.has_optimizer = OPTIMIZER in self._uploads
        self.sent = self._next_sent
        self.sent_step, self.candidate_step = self.candidate_step, None
        self.candidate = None

    def restore(self, payloads: Mapping[PayloadName, Buffer], total: int, step: StepSize | None = None) -> None:
        """Go back to a checkpoint.

        Args:
            payloads: flat buffer of each of `names` as they were then.
            total: N then.
            step: `sent_step` then.

        Raises:
            ValueError: one is missing, or has another size.
        """
        self.has_optimizer = OPTIMIZER in payloads
        for name in self.names():
            if name not in payloads:
                raise ValueError(f"{name!r} is missing")
            self._memory(name, self.generation)[:] = payloads[name]
        self.total = total
        self.sent = self._describe(self.generation)
        self.sent_step = step

    # --- inside

    def _make_own(self) -> dict[PayloadName, tuple[TensorSchema, list[bytearray]]]:
        schema = self._schema.parameters.widened
        layouts = {name: schema for name in self.slots if name not in self._arena.layout.broadcast}
        layouts.update(dict.fromkeys(self.rule_state.values(), schema))
        if combination.needs_master(self._schema.federated):
            layouts[_MASTER] = combination.master_schema(self._schema.federated)
        if self._spec.plan.downlink != IDENTITY:
            layouts[MODEL] = self._schema.federated
        return {
            name: (schema, [bytearray(schema.nbytes) for _ in range(GENERATIONS)]) for name, schema in layouts.items()
        }

    def _begin(self, arrays: Mapping[str, Array]) -> None:
        for name in (MODEL, HELD):  # what sites hold first is the first model
            self._memory(name, 0)[:] = pack(self._schema.federated, arrays)
        server = self._algorithm.server()
        for name in self.slots:
            write_slot(self._writer(name, 0), server.initial(name))
        for name in self.rule_state.values():
            write_slot(self._writer(name, 0), 0.0)
        if _MASTER in self._own:
            combination.write_master(self._writer(_MASTER, 0), self.model())

    def _memory(self, name: PayloadName, generation: int) -> memoryview:
        if name in self._own:
            return memoryview(self._own[name][1][generation])
        return self._arena.broadcast(generation, MODEL if name == HELD else name)

    def _take_step(self, round_number: RoundNumber) -> Digest:
        """Make the step from what sites hold to the candidate, apply it as they do, and return their next digest."""
        model, held, step = self.model(is_next=True), self.model(HELD), MemoryBytes(bytearray())
        write_step(model=model, held=held, plan=self._spec.plan, round_number=round_number, sink=step)
        buffers = RoleOf(model, TensorRole.BUFFER)
        digest = apply_step(
            held=held,
            step=step,
            buffers=buffers,
            downlink=self._spec.plan.downlink,
            writer=self._writer(HELD),
        )
        nbytes = step.nbytes + buffers.nbytes
        if nbytes < model.nbytes:  # a step that is no smaller is not sent, as an aggregator does not
            self.candidate_step = StepSize(from_digest=self.sent[MODEL][0], nbytes=nbytes)
        return digest

    def _writer(self, name: PayloadName, generation: int | None = None) -> MemoryWriter:
        place = self.next_generation if generation is None else generation
        return MemoryWriter(self.schema_of(name), self._memory(name, place))

    def _describe(self, generation: int, model: Digest | None = None) -> dict[PayloadName, tuple[bytes, int]]:
        sent: dict[PayloadName, tuple[bytes, int]] = {}
        for name, schema in self._arena.layout.broadcast.items():
            if name == MODEL and model is not None:
                sent[name] = (model, schema.nbytes)
            elif name != OPTIMIZER or self.has_optimizer or model is not None:
                held = self._arena.broadcast(generation, name)
                sent[name] = (MemoryModel(schema, held).digest(), schema.nbytes)
        return sent

    def _payloads(self, update: Update) -> Mapping[PayloadName, Payload]:
        return self._arena.payloads(update.slot, update.trained.payload_bytes)

    def _facts(self, update: Update, round_number: RoundNumber, payloads: Mapping[PayloadName, Payload]) -> SiteFacts:
        scalars = read_scalars(self._uploads[SCALARS], payloads[SCALARS]) if SCALARS in self._uploads else {}
        return SiteFacts(
            site=update.site,
            examples=update.trained.examples,
            steps=update.trained.steps,
            scalars=scalars,
            staleness=max(round_number - update.round, 0),
        )

    def _round(self, round_number: RoundNumber, facts: tuple[SiteFacts, ...], total: int) -> ServerRound:
        plan = self._spec.plan
        rate = server_rate(plan, round_number)
        return ServerRound(number=round_number, plan=plan, sites=facts, total=total, learning_rate=rate)

    def _sources(self, updates: Sequence[Update]) -> RoundSources:
        return RoundSources(
            model=self.model(),
            slots={name: self.model(name) for name in self.slots},
            master=self.model(_MASTER) if _MASTER in self._own else None,
            rule_state={own: self.model(name) for own, name in self.rule_state.items()},
            bases=self._bases(updates),
            total=self.total,
        )

    def _sinks(self) -> RoundSinks:
        return RoundSinks(
            model=self._writer(MODEL),
            slots={name: self._writer(name) for name in self.slots},
            master=self._writer(_MASTER) if _MASTER in self._own else None,
            rule_state={own: self._writer(name) for own, name in self.rule_state.items()},
        )

    def _bases(self, updates: Sequence[Update]) -> dict[SiteName, MemoryModel]:
        if not self._algorithm.needs_base:
            return {}
        schema = self._schema.federated
        return {update.site: MemoryModel(schema, self.versions[update.round]) for update in updates}
