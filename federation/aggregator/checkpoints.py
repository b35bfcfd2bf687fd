"""The models of one experiment on disk: the committed one, the best one, and the candidate being made.

Files, in ``checkpoints/``: ``base`` (tensors with role LOCAL, never changed), ``model`` (what is federated), ``best``
(a hard link to the model it was), and, where they apply, ``master`` (float32 of half-precision parameters) and
``optimizer`` (aggregated optimizer state). Each says in its metadata which round it is of. Rules:

1. A candidate is committed file by file, then the journal line is written. A process killed in between leaves files of
   a round that no line names; the superseded ones are still there as spares, and are put back at the next start.
2. ``best`` is linked after the journal line; if that was lost, the next start links it.
3. Whole models, local tensors included, are only assembled for download.

Everything here blocks: it is called in a thread, one call at a time.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from federation.aggregation.rule import load_rule
from federation.errors import StorageError
from federation.storage import combination
from federation.storage.assembly import assemble_model
from federation.storage.checkpoints import ModelFile, ModelWriter, read_header
from federation.storage.disk import sync_folder, translated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from federation.names import Digest, ExperimentId, RoundNumber, SiteName
    from federation.plan import ExperimentSpec
    from federation.storage.disk import Readable
    from federation.tensors import TensorSchema

_ROUND = "round"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One admitted update: `weight` p_i, and its payloads in the spool; None where the experiment has none."""

    site: SiteName
    weight: float
    delta: Readable
    buffers: Readable | None = None
    optimizer: Readable | None = None


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A finished model that is not committed.

    Attributes:
        round: round it would commit.
        digest: BLAKE3 of its ``model`` payload.
        optimizer_digest: BLAKE3 of the aggregated optimizer state; None without one.
        update_norm: L2 norm of the aggregated change of the parameters.
    """

    round: RoundNumber
    digest: Digest
    optimizer_digest: Digest | None = None
    update_norm: float
    _writers: list[ModelWriter] = field(default_factory=list)

    def open(self) -> ModelFile:
        """Open its model for reading, to be evaluated."""
        return self._writers[0].reader()

    def open_optimizer(self) -> ModelFile:
        """Open its optimizer state for reading."""
        return self._writers[-1].reader()

    def sync(self) -> None:
        """Begin to make it durable, so that `commit` is quick; while it is being evaluated.

        Raises:
            StorageError: the disk failed.
        """
        for writer in self._writers:
            writer.sync()

    def commit(self) -> None:
        """Make it durable under its names.

        Raises:
            StorageError: the disk failed; a restart finds the earlier model.
        """
        for writer in self._writers:
            writer.commit()

    def abort(self) -> None:
        """Forget it; nothing happens after `commit`."""
        for writer in self._writers:
            writer.abort()


class Checkpoints:
    """The model files of one experiment.

    Args:
        folder: of the experiment; it has ``initial.safetensors``, the whole initial model.
        experiment: its id, for the metadata.
        spec: schema and plan.
    """

    def __init__(self, folder: Path, experiment: ExperimentId, spec: ExperimentSpec) -> None:
        self.schema = spec.schema_
        self.optimizer_schema = spec.optimizer_schema
        self._initial = folder / "initial.safetensors"
        self._folder = folder / "checkpoints"
        self._metadata = {"experiment": str(experiment)}
        self._rule = load_rule(spec.plan.rule)
        self._needs_master = combination.needs_master(self.schema.federated)

    def prepare(self, committed: RoundNumber, best: RoundNumber) -> None:
        """Bring the files to a committed round: made from the initial model, or put back from their spares.

        Args:
            committed: last committed round; 0 before the first.
            best: round of the best model; 0 if there is none.

        Raises:
            PlanError: the initial model is not the spec's.
            StorageError: a file of that round is missing, or the disk failed.
        """
        with translated(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
        if not self._path("base").exists():
            assemble_model(self._path("base"), self.schema.local, [self._initial], metadata=self._metadata)
        if committed == 0:
            self._begin()
        for name in self._names():
            if name != "optimizer" or committed > 0:
                self._restore(name, committed)
        if best and self._round_of(self._path("best")) != best:
            if best != committed:
                raise StorageError(f"{self._path('best')} is not of round {best}, which the journal calls the best")
            self.keep_best()

    def open_base(self) -> ModelFile:
        """Open the tensors that are delivered once."""
        return ModelFile.open(self._path("base"))

    def open_model(self) -> ModelFile:
        """Open the committed model, federated tensors only."""
        return ModelFile.open(self._path("model"))

    def open_optimizer(self) -> ModelFile | None:
        """Open the aggregated optimizer state; None before the first round, or without one."""
        if not self.optimizer_schema.nbytes or not self._path("optimizer").exists():
            return None
        return ModelFile.open(self._path("optimizer"))

    def combine(self, round_number: RoundNumber, contributions: Sequence[Contribution]) -> Candidate:
        """Make the candidate of a round.

        Args:
            round_number: the round.
            contributions: every admitted update.

        Raises:
            PlanError: the result is not finite.
            StorageError: the disk failed; the committed model is as before.
        """
        updates = [
            combination.SiteUpdate(
                site=row.site,
                weight=row.weight,
                payloads={combination.DELTA: row.delta}
                | ({} if row.buffers is None else {combination.BUFFERS: row.buffers}),
            )
            for row in contributions
        ]
        with contextlib.ExitStack() as stack:
            writer = self._writer(stack, "model", self.schema.federated, round_number)
            writers, master, master_writer = [writer], None, None
            if self._needs_master:
                master = stack.enter_context(ModelFile.open(self._path("master")))
                schema = combination.master_schema(self.schema.federated)
                master_writer = self._writer(stack, "master", schema, round_number)
                writers.append(master_writer)
            with self.open_model() as model:
                combined = combination.combine_model(
                    model=model,
                    writer=writer,
                    rule=self._rule,
                    updates=updates,
                    master=master,
                    master_writer=master_writer,
                )
            optimizer_digest = None
            if self.optimizer_schema.nbytes:
                state_writer = self._writer(stack, "optimizer", self.optimizer_schema, round_number)
                states = [(row.site, row.weight, row.optimizer) for row in contributions if row.optimizer is not None]
                optimizer_digest = combination.combine_values(writer=state_writer, rule=self._rule, updates=states)
                writers.append(state_writer)
            # From here on the candidate owns its writers: leaving the stack must not abort them.
            stack.pop_all()
            if master is not None:
                master.close()
        return Candidate(
            round=round_number,
            digest=combined.digest,
            optimizer_digest=optimizer_digest,
            update_norm=combined.update_norm,
            _writers=writers,
        )

    def keep_best(self) -> None:
        """Let the committed model be the best one.

        Raises:
            StorageError: the disk failed.
        """
        temporary = self._path("best").with_name(".best.tmp")
        with translated(self._path("best")):
            temporary.unlink(missing_ok=True)
            os.link(self._path("model"), temporary)
            os.replace(temporary, self._path("best"))
        sync_folder(self._folder)

    def export(self, name: str, path: Path) -> None:
        """Write the whole model, local tensors included, to a file of its own.

        Args:
            name: ``"model"`` or ``"best"``.
            path: where.

        Raises:
            StorageError: there is no such model, or the disk failed.
        """
        round_number = self._round_of(self._path(name))
        metadata = {**self._metadata, _ROUND: str(round_number)}
        assemble_model(path, self.schema, [self._path(name), self._path("base")], metadata=metadata)

    def _begin(self) -> None:
        """Make the model of round 0 unless it is there."""
        metadata = {**self._metadata, _ROUND: "0"}
        if self._round_of(self._path("model")) != 0 and self._round_of(self._spare("model")) != 0:
            assemble_model(self._path("model"), self.schema.federated, [self._initial], metadata=metadata)
        if not self._needs_master:
            return
        if self._round_of(self._path("master")) != 0 and self._round_of(self._spare("master")) != 0:
            schema = combination.master_schema(self.schema.federated)
            source = self._path("model") if self._round_of(self._path("model")) == 0 else self._spare("model")
            with (
                ModelFile.open(source) as model,
                ModelWriter(self._path("master"), schema, metadata=metadata) as writer,
            ):
                combination.write_master(writer, model)
                writer.commit()

    def _restore(self, name: str, committed: RoundNumber) -> None:
        """Rule 1: see that the file is of the committed round."""
        if self._round_of(self._path(name)) == committed:
            return
        if self._round_of(self._spare(name)) != committed:
            raise StorageError(
                f"{self._path(name)} is not of round {committed}, which the journal says was committed; restore the "
                "folder from a backup, or run the experiment again"
            )
        with translated(self._path(name)):
            os.replace(self._spare(name), self._path(name))
        sync_folder(self._folder)

    def _names(self) -> list[str]:
        master = ["master"] if self._needs_master else []
        return ["model", *master, *(["optimizer"] if self.optimizer_schema.nbytes else [])]

    def _round_of(self, path: Path) -> int:
        """Round a file says it is of; -1 if it is not there or does not say."""
        if not path.exists():
            return -1
        return int(read_header(path).metadata.get(_ROUND, "-1"))

    def _writer(
        self, stack: contextlib.ExitStack, name: str, schema: TensorSchema, round_number: RoundNumber
    ) -> ModelWriter:
        metadata = {**self._metadata, _ROUND: str(round_number)}
        writer = ModelWriter(self._path(name), schema, metadata=metadata, spare=self._spare(name))
        return stack.enter_context(writer)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _spare(self, name: str) -> Path:
        return self._folder / f"{name}.spare"
