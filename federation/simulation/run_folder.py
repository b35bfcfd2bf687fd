"""The folder of a run: what comparing reads, and what a run that was stopped goes on from.

``run.json`` says what ran, ``history.jsonl`` has one line per committed round, ``model.safetensors`` and
``best.safetensors`` are whole models, ``partition.csv`` and ``partition.svg`` show what each site has, ``state/`` is
what sites keep, ``events.log`` what went wrong. Rules:

1. A line of history is written, and flushed, when its round is committed.
2. ``checkpoint/`` holds everything of one round under names with its number; ``state.json`` in it is replaced last, by
   rename, and names that round. So a run killed at any instant goes on from a whole checkpoint: history is cut back to
   it, and sites get the state they had.
3. A folder is of one plan. Another plan in it is refused; `--fresh` begins anew.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from federation.errors import ConflictError, StorageError
from federation.names import PayloadName, RoundNumber, SiteName
from federation.rounds.events import Score
from federation.rounds.history import RoundRecord
from federation.simulation.candidates import StepSize
from federation.simulation.under_way import UnderWay
from federation.storage.safetensors_files import read_model, write_model
from federation.tensors import pack

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path
    from typing import IO

    from federation.data.partitions.report import PartitionReport
    from federation.simulation.bench import Failure
    from federation.simulation.models import Models
    from federation.tensors import TensorSchema
    from federation.tensors.buffers import Array

FORMAT = 1
_NO_ROUND = RoundNumber(0)
_PARTITION = ("partition.csv", "partition.svg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standpoint:
    """Where a run is between two rounds.

    Attributes:
        round: last committed round; 0 before the first.
        score: of its commit.
        total: N of the method.
        clock: simulated seconds.
        absent: round at which each site that is away is ready.
        held: digest of each payload each site holds.
        step: what leads to the model from the one before; None if there is none.
        under_way: what goes on beyond the round, in asynchronous runs.
    """

    round: RoundNumber = _NO_ROUND
    score: Score = field(default_factory=Score)
    total: int = 0
    clock: float = 0.0
    absent: Mapping[SiteName, int] = field(default_factory=dict)
    held: Mapping[SiteName, Mapping[PayloadName, bytes]] = field(default_factory=dict)
    step: StepSize | None = None
    under_way: UnderWay = field(default_factory=UnderWay)


class RunFolder:
    """One run's folder; made if missing.

    Args:
        path: the folder.
        description: what run.json says: at least ``spec`` and ``digest``.
        resume: go on with what is there; False: begin anew.

    Attributes:
        state: folder of what sites keep.

    Raises:
        ConflictError: the folder is of another plan.
        StorageError: it cannot be read or written.
    """

    def __init__(self, path: Path, description: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.state = path / "state"
        self._checkpoint = path / "checkpoint"
        self._description = dict(description)
        self._history: IO[str] | None = None
        self._best_round = 0
        try:
            if not resume:
                self._clear()
            earlier = self.description()
            if earlier and earlier.get("digest") != description["digest"]:
                raise ConflictError(
                    f"run folder {path} is of another plan, or its code, data or conditions were others (digest "
                    f"{str(earlier.get('digest'))[:16]}, this is {description['digest'][:16]}); choose another --out "
                    "or --fresh"
                )
            path.mkdir(parents=True, exist_ok=True)
            if not earlier:
                self._describe()
        except OSError as error:
            raise StorageError(f"run folder {path}: {error.strerror}") from error

    def description(self) -> dict[str, Any]:
        """Return what run.json says; empty if there is none.

        Raises:
            StorageError: it is not valid.
        """
        try:
            document: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path / 'run.json'} cannot be read: {error}") from error
        return document

    def recover(self, models: Models) -> tuple[Standpoint, list[RoundRecord]]:
        """Bring models, history and sites' state to the last checkpoint, and return where that is.

        Raises:
            StorageError: the checkpoint is damaged; begin anew.
        """
        standpoint, records = Standpoint(), self.records()
        try:
            if (self._checkpoint / "state.json").exists():
                standpoint = self._restore(models)
            elif self.state.exists():
                shutil.rmtree(self.state)
            records = records[: standpoint.round]
            if len(records) < standpoint.round:
                raise ValueError(f"history.jsonl has {len(records)} rounds, the checkpoint is of {standpoint.round}")
            lines = [json.dumps(record.to_json()) + "\n" for record in records]
            _replace(self.path / "history.jsonl", "".join(lines))
            self._history = (self.path / "history.jsonl").open("a")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"run folder {self.path} cannot be resumed: {error}; begin anew with --fresh") from error
        return standpoint, records

    def records(self) -> list[RoundRecord]:
        """Return the history. A last line that was cut short by the end of the process is left out.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            text = (self.path / "history.jsonl").read_text()
            lines = text.splitlines(keepends=True)
            return [RoundRecord.from_json(json.loads(line)) for line in lines if line.endswith("\n")]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path / 'history.jsonl'} cannot be read: {error}") from error

    def append(self, record: RoundRecord) -> None:
        """Write one round.

        Raises:
            StorageError: the disk failed.
        """
        if self._history is None:
            raise RuntimeError("recover before appending")
        try:
            self._history.write(json.dumps(record.to_json()) + "\n")
            self._history.flush()
        except OSError as error:
            raise StorageError(f"{self.path / 'history.jsonl'}: {error.strerror}") from error

    def note(self, round_number: int, site: str, failure: Failure) -> None:
        """Write down why a site failed.

        Raises:
            StorageError: the disk failed.
        """
        try:
            with (self.path / "events.log").open("a") as log:
                log.write(f"round {round_number}, {site}: {failure.error_class}: {failure.text}\n{failure.traceback}\n")
        except OSError as error:
            raise StorageError(f"{self.path / 'events.log'}: {error.strerror}") from error

    def save(
        self, standpoint: Standpoint, models: Models, best: Mapping[str, Array] | None, schema: TensorSchema
    ) -> None:
        """Write a checkpoint and let go of the one before.

        Args:
            standpoint: where the run is.
            models: after the commit.
            best: whole best model; None if there is none.
            schema: of the whole model.

        Raises:
            StorageError: the disk failed; the earlier checkpoint is as before.
        """
        number = standpoint.round
        try:
            self._checkpoint.mkdir(exist_ok=True)
            names = models.names()
            for name in names:
                model = models.model(name)
                write_model(self._file(name, number), model.schema, model.arrays())
            if best is not None and standpoint.score.best_round != self._best_round:
                write_model(self.path / "best.safetensors", schema, best)
                self._best_round = standpoint.score.best_round
            self._link_state(number, standpoint.under_way.pending)
            under_way, blocks = standpoint.under_way.pack()
            _replace(self._checkpoint / f"under-way-{number}", blocks)
            document = {
                "round": number,
                "payloads": list(names),
                "score": asdict(standpoint.score),
                "total": standpoint.total,
                "clock": standpoint.clock,
                "absent": dict(standpoint.absent),
                "held": {
                    site: {name: digest.hex() for name, digest in held.items()}
                    for site, held in standpoint.held.items()
                },
                "under_way": under_way,
                "step": standpoint.step and [standpoint.step.from_digest.hex(), standpoint.step.nbytes],
            }
            _replace(self._checkpoint / "state.json", json.dumps(document))
            self._forget_others(number)
        except OSError as error:
            raise StorageError(f"run folder {self.path}: {error.strerror}") from error

    def finish(
        self,
        schema: TensorSchema,
        arrays: Mapping[str, Array],
        best: Mapping[str, Array] | None,
        outcome: Mapping[str, Any],
    ) -> None:
        """Write the last model and what became of the run.

        Raises:
            StorageError: the disk failed.
        """
        write_model(self.path / "model.safetensors", schema, arrays)
        write_model(self.path / "best.safetensors", schema, arrays if best is None else best)
        self._description = {**self.description(), **outcome}
        try:
            self._describe()
        except OSError as error:
            raise StorageError(f"run folder {self.path}: {error.strerror}") from error

    def show_partition(self, report: PartitionReport) -> None:
        """Write what each site has: ``partition.csv``, and ``partition.svg``, the picture.

        Raises:
            StorageError: the disk refused.
        """
        try:
            for name, content in zip(_PARTITION, (report.csv(), report.svg()), strict=True):
                _replace(self.path / name, content)
        except OSError as error:
            raise StorageError(f"run folder {self.path}: {error.strerror}") from error

    def read(self, name: str) -> dict[str, Array] | None:
        """Return the tensors of ``model`` or ``best``; None if there is no such file.

        Raises:
            StorageError: it is damaged.
        """
        path = self.path / f"{name}.safetensors"
        return read_model(path)[1] if path.exists() else None

    def close(self) -> None:
        """Close the history."""
        if self._history is not None:
            self._history.close()

    # --- inside

    def _describe(self) -> None:
        _replace(self.path / "run.json", json.dumps(self._description, indent=1) + "\n")

    def _clear(self) -> None:
        for name in ("checkpoint", "state"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("run.json", "history.jsonl", "model.safetensors", "best.safetensors", "events.log", *_PARTITION):
            (self.path / name).unlink(missing_ok=True)

    def _file(self, name: PayloadName, number: RoundNumber) -> Path:
        kind = name if name in ("model", "optimizer", "held", "master") else f"slot-{name}"
        return self._checkpoint / f"{kind}-{number}.safetensors"

    def _restore(self, models: Models) -> Standpoint:
        document = json.loads((self._checkpoint / "state.json").read_text())
        number = RoundNumber(int(document["round"]))
        payloads = {}
        for name in map(PayloadName, document["payloads"]):
            schema, arrays = read_model(self._file(name, number))
            payloads[name] = pack(schema, arrays)
        step = _step_of(document.get("step"))
        models.restore(payloads, int(document["total"]), step)
        shutil.rmtree(self.state, ignore_errors=True)
        kept = self._checkpoint / f"state-{number}"
        if kept.exists():
            shutil.copytree(kept, self.state)
        self._best_round = int(document["score"]["best_round"])
        return Standpoint(
            round=number,
            score=replace(Score(), **document["score"]),
            total=int(document["total"]),
            clock=float(document["clock"]),
            absent={SiteName(site): int(back) for site, back in document["absent"].items()},
            held={
                SiteName(site): {PayloadName(name): bytes.fromhex(digest) for name, digest in held.items()}
                for site, held in document["held"].items()
            },
            step=step,
            under_way=self._under_way(number, document),
        )

    def _under_way(self, number: RoundNumber, document: Mapping[str, Any]) -> UnderWay:
        if "under_way" not in document:  # of an earlier release, which resumed synchronous runs only
            return UnderWay()
        return UnderWay.unpack(document["under_way"], (self._checkpoint / f"under-way-{number}").read_bytes())

    def _link_state(self, number: RoundNumber, pending: Collection[SiteName]) -> None:
        """Keep what sites keep now, and what waits for the verdict on an update that is under way.

        Their files are replaced, never written into, so a link is a copy.
        """
        kept = self._checkpoint / f"state-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        if not self.state.exists():
            return
        for site in sorted(self.state.iterdir()):
            for name in ("kept.state", *(("pending.state",) if site.name in pending else ())):
                source, target = site / name, kept / site.name / name
                if not source.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except OSError:  # a file system without links
                    shutil.copy2(source, target)

    def _forget_others(self, number: RoundNumber) -> None:
        for entry in self._checkpoint.iterdir():
            if entry.name == "state.json" or entry.stem.endswith(f"-{number}"):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def checkpointed_round(folder: Path) -> RoundNumber:
    """Return the round that the run in a folder goes on after when it is started again; 0 if there is no checkpoint."""
    try:
        return RoundNumber(int(json.loads((folder / "checkpoint" / "state.json").read_text())["round"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _NO_ROUND  # a damaged one is named by whoever goes on from it


def _step_of(row: list[Any] | None) -> StepSize | None:
    return None if row is None else StepSize(from_digest=bytes.fromhex(row[0]), nbytes=int(row[1]))


def _replace(path: Path, content: str | Sequence[bytes]) -> None:
    blocks = [content.encode()] if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.writelines(blocks)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
