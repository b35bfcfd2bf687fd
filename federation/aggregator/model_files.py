"""The files that hold an experiment's models: what each is called, what is in it, of which round it is.

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
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from federation.aggregator.candidates import HELD, MODEL, OPTIMIZER, slot_file
from federation.errors import StorageError
from federation.names import RoundNumber
from federation.storage import combination
from federation.storage.assembly import assemble_model
from federation.storage.disk import sync_folder, translated
from federation.storage.method_combination import write_slot
from federation.storage.rule_state import state_name as rule_state_name
from federation.storage.safetensors_files import ModelFile, ModelWriter, read_header

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence
    from pathlib import Path

    from federation.algorithms.algorithm import Algorithm
    from federation.names import ExperimentId
    from federation.plan import ExperimentSpec
    from federation.tensors import TensorSchema

MASTER, BEST, BASE = "master", "best", "base"
_ROUND, _SITES = "round", "sites"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems say in which a file has one name."""


def sites_of(model: ModelFile) -> int:
    """Return with how many sites N the method counted when a file was made."""
    return int(model.metadata.get(_SITES, "0"))


class ModelFiles:
    """The files of one experiment, and which round of them is committed.

    Args:
        folder: of the experiment; it has ``initial.safetensors``, the whole initial model.
        experiment: its id, for the metadata.
        spec: schema and plan.
        algorithm: the plan's method.
        rule_state: names of the vectors the plan's rule keeps.

    Attributes:
        folder: where the files are.
        committed: the round whose files are good; whoever journals a round sets it.
        needs_master: parameters are of half precision.
    """

    def __init__(
        self,
        folder: Path,
        experiment: ExperimentId,
        spec: ExperimentSpec,
        *,
        algorithm: Algorithm,
        rule_state: Sequence[str],
    ) -> None:
        self.folder = folder / "checkpoints"
        self.committed = RoundNumber(0)
        self._schema = spec.schema_
        self._optimizer_schema = spec.optimizer_schema
        self._compresses = spec.plan.downlink != "identity"
        self._algorithm = algorithm
        self._rule_state = rule_state
        self._initial = folder / "initial.safetensors"
        self._metadata = {"experiment": str(experiment)}
        self.needs_master = combination.needs_master(self._schema.federated)
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
        if not self.path(BASE).exists():
            assemble_model(self.path(BASE), self._schema.local, [self._initial], metadata=self._metadata)
        if committed == 0:
            self._begin()
        for name in self.names():
            if (name != OPTIMIZER or committed > 0) and self._round_of(self.path(name, committed)) != committed:
                raise StorageError(
                    f"{self.path(name, committed)} is not of round {committed}, which the journal says was committed; "
                    "restore the folder from a backup, or run the experiment again"
                )
        self.committed = committed
        if best and not self._has_best(best):
            if best != committed:
                raise StorageError(f"{self.path(BEST)} is not of round {best}, which the journal calls the best")
            self.keep_best()

    def keep_best(self) -> None:
        """Let the committed model be the best one; durable with the next candidate.

        Raises:
            StorageError: the disk failed.
        """
        best, model = self.path(BEST), self.present(MODEL)
        temporary = best.with_name(".best.tmp")
        with translated(best):
            temporary.unlink(missing_ok=True)
            try:
                os.link(model, temporary)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                metadata = {**self._metadata, _ROUND: str(self.committed)}
                assemble_model(best, self._schema.federated, [model], metadata=metadata)
                return
            os.replace(temporary, best)
        self._is_folder_changed = True

    def sync_folder(self) -> None:
        """Make durable what was linked since the last call.

        Raises:
            StorageError: the disk failed.
        """
        if self._is_folder_changed:
            sync_folder(self.folder)
            self._is_folder_changed = False

    def writers(self, stack: contextlib.ExitStack, number: RoundNumber, *, total: int) -> dict[str, ModelWriter]:
        """Begin the files of a candidate over those of the round before the committed one.

        Args:
            stack: gives the files up unless it is emptied.
            number: the round.
            total: sites N it counts with.

        Returns:
            The files by name, in the order in which they become durable.
        """
        if number != self.committed + 1:
            raise RuntimeError(f"a candidate of round {number} after round {self.committed}")
        metadata = {**self._metadata, _ROUND: str(number), _SITES: str(total)}
        writers = {}
        for name in self.names():
            writer = ModelWriter(self.path(name, number), self._schema_of(name), metadata=metadata, in_place=True)
            writers[name] = stack.enter_context(writer)
        return writers

    def export(self, source: Path, path: Path) -> None:
        """Write the whole model of a file, local tensors included, to a file of its own.

        Raises:
            StorageError: there is no such model, or the disk failed.
        """
        metadata = {**self._metadata, _ROUND: str(self._round_of(source))}
        assemble_model(path, self._schema, [source, self.path(BASE)], metadata=metadata)

    def names(self) -> list[str]:
        """Return the names of the files that each round has."""
        master = [MASTER] if self.needs_master else []
        optimizer = [OPTIMIZER] if self._optimizer_schema.nbytes else []
        held = [HELD] if self._compresses else []
        kept = map(rule_state_name, self._rule_state)
        return [MODEL, *master, *optimizer, *held, *map(slot_file, self._algorithm.slots), *kept]

    def open(self, name: str) -> ModelFile:
        """Open a file of the committed round."""
        return ModelFile.open(self.present(name))

    def present(self, name: str) -> Path:
        """Return the file of the committed round."""
        return self.path(name, self.committed)

    def path(self, name: str, number: int | None = None) -> Path:
        """Return the file of a round; without one, that of what is there once."""
        twin = "" if number is None else ".odd" if number % 2 else ".even"
        return self.folder / f"{name}{twin}.safetensors"

    def _begin(self) -> None:
        """Make the files of round 0 unless they are there."""
        metadata = {**self._metadata, _ROUND: "0", _SITES: "0"}
        for name in (MODEL, HELD):  # what sites hold first is the first model
            if name in self.names() and self._is_missing(name):
                assemble_model(self.path(name, 0), self._schema.federated, [self._initial], metadata=metadata)
        if self.needs_master and self._is_missing(MASTER):
            with (
                ModelFile.open(self.path(MODEL, 0)) as model,
                ModelWriter(self.path(MASTER, 0), self._schema_of(MASTER), metadata=metadata) as writer,
            ):
                combination.write_master(writer, model)
                writer.commit()
        server = self._algorithm.server()
        vectors = {slot_file(slot): server.initial(slot) for slot in self._algorithm.slots}
        vectors.update(dict.fromkeys(map(rule_state_name, self._rule_state), 0.0))
        for name, initial in vectors.items():
            if self._is_missing(name):
                with ModelWriter(self.path(name, 0), self._schema_of(name), metadata=metadata) as writer:
                    write_slot(writer, initial)
                    writer.commit()

    def _is_missing(self, name: str) -> bool:
        """Tell whether there is no file of round 0."""
        return self._round_of(self.path(name, 0)) != 0

    def _schema_of(self, name: str) -> TensorSchema:
        if name == MASTER:
            return combination.master_schema(self._schema.federated)
        federated = self._schema.federated
        own = {MODEL: federated, HELD: federated, OPTIMIZER: self._optimizer_schema}
        return own.get(name, self._schema.parameters.widened)

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
            return self._round_of(self.path(BEST)) == number
        except StorageError:
            return False
