"""The models of one experiment: the committed one, the best one, and the candidate being made.

Which files they are in, and when each is good, `federation.aggregator.model_files` says. Here a round's candidate is
combined into them, made durable, and taken over once the journal names it. Whole models, local tensors included, are
only assembled for download.

Everything here blocks: it is called in a thread, one call at a time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from federation.aggregation.registry import load_aggregation
from federation.aggregator.candidates import HELD, MODEL, OPTIMIZER, Candidate, Contribution, slot_file
from federation.aggregator.model_files import BASE, MASTER, ModelFiles, sites_of
from federation.aggregator.steps import make_step
from federation.aggregator.support import check_supported
from federation.algorithms import registry
from federation.algorithms.algorithm import SCALARS
from federation.algorithms.server import ServerRound, SiteFacts, count_sites
from federation.names import PayloadName, RoundNumber
from federation.rounds import schedules
from federation.storage import combination
from federation.storage.combination import SiteUpdate
from federation.storage.method_combination import RoundSinks, RoundSources, combine_round, read_scalars
from federation.storage.rule_state import state_name as rule_state_name
from federation.storage.safetensors_files import ModelFile, ModelWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from federation.aggregator.steps import Step
    from federation.names import Digest, ExperimentId
    from federation.plan import ExperimentSpec


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
        self._aggregation = load_aggregation(spec.plan)
        self.downlink = spec.plan.downlink
        self._files = ModelFiles(
            folder, experiment, spec, algorithm=self.algorithm, rule_state=tuple(self._aggregation.rule.state)
        )
        self.folder = self._files.folder

    def prepare(self, committed: RoundNumber, best: RoundNumber) -> None:
        """Find the files of a committed round, or make them from the initial model; see `ModelFiles.prepare`."""
        self._files.prepare(committed, best)

    def file_of(self, payload: PayloadName) -> Path:
        """Return the file of a payload that sites train from."""
        return self._files.present(payload if payload in (MODEL, OPTIMIZER) else slot_file(payload))

    def open_base(self) -> ModelFile:
        """Open the tensors that are delivered once."""
        return ModelFile.open(self._files.path(BASE))

    def open_model(self) -> ModelFile:
        """Open the committed model, federated tensors only."""
        return self._files.open(MODEL)

    def open_sent(self) -> ModelFile:
        """Open what sites hold: the committed model, or where the plan compresses what the server sends, x̂."""
        return self._files.open(HELD if HELD in self._files.names() else MODEL)

    def open_optimizer(self) -> ModelFile | None:
        """Open the aggregated optimizer state; None before the first round, or without one."""
        if not self.optimizer_schema.nbytes or not self._files.committed:
            return None
        return self._files.open(OPTIMIZER)

    def open_slots(self) -> dict[str, ModelFile]:
        """Open the method's state, by the name of each vector."""
        return {name: self._files.open(slot_file(name)) for name in self.algorithm.slots}

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
                writers = self._files.writers(candidate, round_number, total=round_.total)
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
            master=stack.enter_context(self._files.open(MASTER)) if self._files.needs_master else None,
            rule_state={name: stack.enter_context(self._files.open(rule_state_name(name))) for name in kept},
            bases={row.site: stack.enter_context(ModelFile.open(row.base)) for row in contributions if row.base},
            total=sites_of(model),
        )

    def _sinks(self, writers: Mapping[str, ModelWriter]) -> RoundSinks:
        return RoundSinks(
            model=writers[MODEL],
            slots={name: writers[slot_file(name)] for name in self.algorithm.slots},
            master=writers.get(MASTER),
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
        self._files.sync_folder()
        candidate.scores = dict(candidate.scores)

    def take(self, candidate: Candidate) -> None:
        """Go on from a candidate, which the journal names now; waits for no disk."""
        candidate.close()
        self._files.committed = candidate.round

    def keep_best(self) -> None:
        """Let the committed model be the best one; durable with the next candidate; see `ModelFiles.keep_best`."""
        self._files.keep_best()

    def export(self, name: str, path: Path) -> None:
        """Write the whole model, local tensors included, to a file of its own.

        Args:
            name: ``"model"`` or ``"best"``.
            path: where.

        Raises:
            StorageError: there is no such model, or the disk failed.
        """
        self._files.export(self._files.present(MODEL) if name == MODEL else self._files.path(name), path)
