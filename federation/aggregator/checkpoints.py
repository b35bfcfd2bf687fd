"""The models of one experiment on disk: the committed one, the best one, and the candidate being made.

Files, in ``checkpoints/``: ``base`` (tensors with role LOCAL, never changed), ``model`` (what is federated), ``best``
(a hard link to the model it was; a copy where a file has one name only), and, where they apply, ``master`` (float32 of
half-precision parameters), ``optimizer`` (aggregated optimizer state), ``held`` (what sites hold, where the plan
compresses what the server sends), and ``method-…`` and ``rule-…`` for each vector of the state of method and rule. All
but the first and ``best`` are there twice, for even rounds and for odd ones. Each says in its metadata which round it
is of, and with how many sites N the method then counted. Rules:

1. Which of the two is good the journal says: that of the last round it names. A candidate is written over the other
   one, which is of the round before; it is durable before its journal line is written, and good once that is durable.
   So a commit waits for one fsync, and no file is linked or renamed by it. Killed or without power at any instant, the
   committed one is whole: what is written over is never good, and what is good is not written.
2. ``best`` is linked after the journal line, and is durable before the next one; if it was lost, the next start links
   it. A durable candidate stays, even given up: where the line's fsync failed, nobody knows whether it is named.
3. Whole models, local tensors included, are only assembled for download.

Everything here blocks: it is called in a thread, one call at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from federation.aggregation.registry import load_aggregation
from federation.aggregator.candidates import HELD, MODEL, OPTIMIZER, Candidate, Contribution, slot_file
from federation.aggregator.steps import make_step
from federation.aggregator.support import check_supported
from federation.algorithms import registry
from federation.algorithms.algorithm import SCALARS
from federation.algorithms.server import ServerRound, SiteFacts, count_sites
from federation.errors import StorageError
from federation.names import PayloadName, RoundNumber
from federation.rounds import schedules
from federation.storage import combination
from federation.storage.assembly import assemble_model
from federation.storage.checkpoints import ModelFile, ModelWriter, read_header
from federation.storage.combination import SiteUpdate
from federation.storage.disk import sync_folder, translated
from federation.storage.method_combination import RoundSinks, RoundSources, combine_round, read_scalars, write_slot
from federation.storage.rule_state import state_name as rule_state_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from federation.aggregator.steps import Step
    from federation.names import Digest, ExperimentId
    from federation.plan import ExperimentSpec
    from federation.tensors import TensorSchema

_ROUND, _SITES = "round", "sites"
_MASTER = "master"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems say in which a file has one name."""


class Checkpoints:
    """The model files of one experiment.

    Args:
        folder: of the experiment; it has ``initial.safetensors``, the whole initial model.
        experiment: its id, for the metadata.
        spec: schema and plan.

    Attributes:
        algorithm: the plan's method.
        folder: where the files are.
        downlink: codec of what the server sends.

    Raises:
        PlanError: method, options and plan do not fit together, or not with an aggregator of this release.
    """

    def __init__(self, folder: Path, experiment: ExperimentId, spec: ExperimentSpec) -> None:
        check_supported(spec)
        self.algorithm = registry.load_algorithm(spec.plan)
        self._spec = spec
        self.schema = spec.schema_
        self.optimizer_schema = spec.optimizer_schema
        self._initial = folder / "initial.safetensors"
        self.folder = folder / "checkpoints"
        self._metadata = {"experiment": str(experiment)}
        self._aggregation = load_aggregation(spec.plan)
        self.downlink = spec.plan.downlink
        self._needs_master = combination.needs_master(self.schema.federated)
        self._committed = RoundNumber(0)
        self._is_folder_changed = True  # perhaps: an earlier process may have been killed before it had synced that

    def prepare(self, committed: RoundNumber, best: RoundNumber) -> None:
        """Find the files of a committed round, or make them from the initial model.

        Args:
            committed: last committed round; 0 before the first.
            best: round of the best model; 0 if there is none.

        Raises:
            PlanError: the initial model is not the spec's.
            StorageError: a file of that round is missing, or the disk failed.
        """
        with translated(self.folder):
            self.folder.mkdir(mode=0o700, exist_ok=True)
        if not self._path("base").exists():
            assemble_model(self._path("base"), self.schema.local, [self._initial], metadata=self._metadata)
        if committed == 0:
            self._begin()
        for name in self._names():
            if (name != OPTIMIZER or committed > 0) and self._round_of(self._path(name, committed)) != committed:
                raise StorageError(
                    f"{self._path(name, committed)} is not of round {committed}, which the journal says was committed; "
                    "restore the folder from a backup, or run the experiment again"
                )
        self._committed = committed
        if best and not self._has_best(best):
            if best != committed:
                raise StorageError(f"{self._path('best')} is not of round {best}, which the journal calls the best")
            self.keep_best()

    def file_of(self, payload: PayloadName) -> Path:
        """Return the file of a payload that sites train from."""
        return self._present(payload if payload in (MODEL, OPTIMIZER) else slot_file(payload))

    def open_base(self) -> ModelFile:
        """Open the tensors that are delivered once."""
        return ModelFile.open(self._path("base"))

    def open_model(self) -> ModelFile:
        """Open the committed model, federated tensors only."""
        return self._open(MODEL)

    def open_sent(self) -> ModelFile:
        """Open what sites hold: the committed model, or where the plan compresses what the server sends, x̂."""
        return self._open(HELD if HELD in self._names() else MODEL)

    def open_optimizer(self) -> ModelFile | None:
        """Open the aggregated optimizer state; None before the first round, or without one."""
        if not self.optimizer_schema.nbytes or not self._committed:
            return None
        return self._open(OPTIMIZER)

    def open_slots(self) -> dict[str, ModelFile]:
        """Open the method's state, by the name of each vector."""
        return {name: self._open(slot_file(name)) for name in self.algorithm.slots}

    def combine(
        self,
        round_number: RoundNumber,
        contributions: Sequence[Contribution],
        *,
        connected: int = 0,
        scores_later: bool = False,
    ) -> Candidate:
        """Make the candidate of a round.

        Args:
            round_number: the one after the committed round.
            contributions: every admitted update.
            connected: sites here now.
            scores_later: scores of a small model may wait until `sync`.

        Raises:
            PlanError: the result is not finite.
            StorageError: the disk failed; the committed model is as before.
        """
        ordered = sorted(contributions, key=lambda row: row.site)
        with contextlib.ExitStack() as stack:
            sources = self._sources(stack, ordered)
            round_ = self._server_round(round_number, ordered, sources.total, connected)
            with contextlib.ExitStack() as candidate:
                writers = self._writers(candidate, round_)
                combined = combine_round(
                    algorithm=self.algorithm,
                    spec=self._spec,
                    aggregation=self._aggregation,
                    round=round_,
                    updates=[SiteUpdate(site=row.site, payloads=row.payloads) for row in ordered],
                    sources=sources,
                    sinks=self._sinks(writers),
                    scores_later=scores_later and self._spec.plan.quarantine is None,
                )
                optimizer_digest = self._combine_optimizer(writers.get(OPTIMIZER), ordered, combined.weights)
                step = self._make_step(round_number, writers)
                candidate.pop_all()  # from here on the candidate owns its writers: nothing else may abort them
        return Candidate(
            round=round_number,
            digest=combined.digest,
            optimizer_digest=optimizer_digest,
            slot_digests=combined.slot_digests,
            update_norm=combined.update_norm,
            weights=combined.weights,
            scores=combined.scores,
            scalars=combined.scalars,
            report=combined.report,
            total_sites=round_.total,
            step=step,
            _writers=writers,
        )

    def _sources(self, stack: contextlib.ExitStack, contributions: Sequence[Contribution]) -> RoundSources:
        """Open what a round is combined from."""
        model = stack.enter_context(self.open_model())
        kept = self._aggregation.rule.state
        return RoundSources(
            model=model,
            slots={name: stack.enter_context(slot) for name, slot in self.open_slots().items()},
            master=stack.enter_context(self._open(_MASTER)) if self._needs_master else None,
            rule_state={name: stack.enter_context(self._open(rule_state_name(name))) for name in kept},
            bases={row.site: stack.enter_context(ModelFile.open(row.base)) for row in contributions if row.base},
            total=int(model.metadata.get(_SITES, "0")),
        )

    def _sinks(self, writers: Mapping[str, ModelWriter]) -> RoundSinks:
        return RoundSinks(
            model=writers[MODEL],
            slots={name: writers[slot_file(name)] for name in self.algorithm.slots},
            master=writers.get(_MASTER),
            rule_state={name: writers[rule_state_name(name)] for name in self._aggregation.rule.state},
        )

    def _server_round(
        self, number: RoundNumber, contributions: Sequence[Contribution], previous: int, connected: int
    ) -> ServerRound:
        scalars = next((row.schema for row in self._spec.uploads() if row.name == SCALARS), None)
        facts = tuple(
            SiteFacts(
                site=row.site,
                examples=row.examples,
                steps=row.steps,
                scalars=read_scalars(scalars, row.payloads[PayloadName(SCALARS)]) if scalars else {},
                staleness=row.staleness,
            )
            for row in contributions
        )
        plan = self._spec.plan
        return ServerRound(
            number=number,
            plan=plan,
            sites=facts,
            total=count_sites(previous, max(connected, len(facts)), plan),
            learning_rate=schedules.server_rate(plan, number),
        )

    def _writers(self, stack: contextlib.ExitStack, round_: ServerRound) -> dict[str, ModelWriter]:
        """Begin the files of a candidate, in the order in which they become durable."""
        if round_.number != self._committed + 1:
            raise RuntimeError(f"a candidate of round {round_.number} after round {self._committed}")
        metadata = {**self._metadata, _ROUND: str(round_.number), _SITES: str(round_.total)}
        writers = {}
        for name in self._names():
            path = self._path(name, round_.number)
            writer = ModelWriter(path, self._schema_of(name), metadata=metadata, in_place=True)
            writers[name] = stack.enter_context(writer)
        return writers

    def _combine_optimizer(
        self, writer: ModelWriter | None, contributions: Sequence[Contribution], weights: Sequence[float]
    ) -> Digest | None:
        if writer is None:
            return None
        states = [
            (row.site, weight, row.payloads[PayloadName(OPTIMIZER)])
            for row, weight in zip(contributions, weights, strict=True)
        ]
        return combination.combine_values(writer=writer, updates=states)

    def _make_step(self, number: RoundNumber, writers: Mapping[str, ModelWriter]) -> Step | None:
        if HELD not in writers:
            return None
        with writers[MODEL].reader() as model, self.open_sent() as held:
            return make_step(
                model=model,
                held=held,
                writer=writers[HELD],
                plan=self._spec.plan,
                round_number=number,
                folder=self.folder,
            )

    def sync(self, candidate: Candidate) -> None:
        """Make a candidate durable, and what was linked since the last one; the journal may then name it.

        Late scores are computed, too.

        Raises:
            StorageError: the disk failed.
        """
        candidate.sync()
        if self._is_folder_changed:
            sync_folder(self.folder)
            self._is_folder_changed = False
        candidate.scores = dict(candidate.scores)

    def take(self, candidate: Candidate) -> None:
        """Go on from a candidate, which the journal names now; waits for no disk."""
        candidate.close()
        self._committed = candidate.round

    def keep_best(self) -> None:
        """Let the committed model be the best one; durable with the next candidate.

        Raises:
            StorageError: the disk failed.
        """
        best, model = self._path("best"), self._present(MODEL)
        temporary = best.with_name(".best.tmp")
        with translated(best):
            temporary.unlink(missing_ok=True)
            try:
                os.link(model, temporary)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                metadata = {**self._metadata, _ROUND: str(self._committed)}
                assemble_model(best, self.schema.federated, [model], metadata=metadata)
                return
            os.replace(temporary, best)
        self._is_folder_changed = True

    def export(self, name: str, path: Path) -> None:
        """Write the whole model, local tensors included, to a file of its own.

        Args:
            name: ``"model"`` or ``"best"``.
            path: where.

        Raises:
            StorageError: there is no such model, or the disk failed.
        """
        source = self._present(MODEL) if name == MODEL else self._path(name)
        metadata = {**self._metadata, _ROUND: str(self._round_of(source))}
        assemble_model(path, self.schema, [source, self._path("base")], metadata=metadata)

    def _begin(self) -> None:
        """Make the files of round 0 unless they are there."""
        metadata = {**self._metadata, _ROUND: "0", _SITES: "0"}
        for name in (MODEL, HELD):  # what sites hold first is the first model
            if name in self._names() and self._is_missing(name):
                assemble_model(self._path(name, 0), self.schema.federated, [self._initial], metadata=metadata)
        if self._needs_master and self._is_missing(_MASTER):
            with (
                ModelFile.open(self._path(MODEL, 0)) as model,
                ModelWriter(self._path(_MASTER, 0), self._schema_of(_MASTER), metadata=metadata) as writer,
            ):
                combination.write_master(writer, model)
                writer.commit()
        server = self.algorithm.server()
        vectors = {slot_file(slot): server.initial(slot) for slot in self.algorithm.slots}
        vectors.update(dict.fromkeys(map(rule_state_name, self._aggregation.rule.state), 0.0))
        for name, initial in vectors.items():
            if self._is_missing(name):
                with ModelWriter(self._path(name, 0), self._schema_of(name), metadata=metadata) as writer:
                    write_slot(writer, initial)
                    writer.commit()

    def _is_missing(self, name: str) -> bool:
        """Tell whether there is no file of round 0."""
        return self._round_of(self._path(name, 0)) != 0

    def _names(self) -> list[str]:
        master = [_MASTER] if self._needs_master else []
        optimizer = [OPTIMIZER] if self.optimizer_schema.nbytes else []
        held = [HELD] if self.downlink != "identity" else []
        kept = map(rule_state_name, self._aggregation.rule.state)
        return [MODEL, *master, *optimizer, *held, *map(slot_file, self.algorithm.slots), *kept]

    def _schema_of(self, name: str) -> TensorSchema:
        if name == _MASTER:
            return combination.master_schema(self.schema.federated)
        federated = self.schema.federated
        own = {MODEL: federated, HELD: federated, OPTIMIZER: self.optimizer_schema}
        return own.get(name, self.schema.parameters.widened)

    def _round_of(self, path: Path) -> int:
        """Round a file says it is of; -1 if it is not there or does not say."""
        if not path.exists():
            return -1
        return int(read_header(path).metadata.get(_ROUND, "-1"))

    def _has_best(self, number: RoundNumber) -> bool:
        """Tell whether the best model is that of a round.

        Its new link may be lost with the power while what it had been linked to is written over; so it may be torn.
        """
        try:
            return self._round_of(self._path("best")) == number
        except StorageError:
            return False

    def _open(self, name: str) -> ModelFile:
        return ModelFile.open(self._present(name))

    def _present(self, name: str) -> Path:
        """Return the file of the committed round."""
        return self._path(name, self._committed)

    def _path(self, name: str, number: int | None = None) -> Path:
        """Return the file of a round; without one, that of what is there once."""
        twin = "" if number is None else ".odd" if number % 2 else ".even"
        return self.folder / f"{name}{twin}.safetensors"
