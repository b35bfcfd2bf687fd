"""What an envoy remembers of each experiment it was asked to join: one small file each, durable before anyone is told.

Stages: ``pending`` waits for the owner; ``accepted`` is being fetched, runs, or will again after a restart;
``refused`` and ``ended`` are over and kept, so that a repeated assignment is answered alike and never run twice.
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from federation.errors import StorageError
from federation.names import ExperimentId, check_name
from federation.runtime.records import write_atomically
from federation.storage.disk import translated
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from pathlib import Path

_RECORD = "participation.json"
_KEPT = 1000


class Stage(Enum):
    """Where a participation stands."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    ENDED = "ended"

    @property
    def is_over(self) -> bool:
        """True once nothing more will happen."""
        return self in (Stage.REFUSED, Stage.ENDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Participation:
    """One experiment at this site.

    Attributes:
        experiment: id.
        assignment: the director's assignment, serialised; its aggregator address may be renewed, nothing else.
        stage: where it stands.
        reason: why, for people.
        submitter: user who signed.
        fingerprint: of the key that signed.
        approved: the owner has approved it.
        refused_by_owner: the owner has refused it, which no later assignment changes.
        asked_at: when the director first asked, Unix seconds.
        outcome: ``finished`` or ``failed`` once ended; empty if it was withdrawn.
        error_class: what went wrong, if it failed.
        detail: released text about it.
        reported: the refusal or end was told to the director.
        log_offset: bytes of the trainer's log that were released.
    """

    experiment: ExperimentId
    assignment: bytes
    stage: Stage
    reason: str = ""
    submitter: str = ""
    fingerprint: str = ""
    approved: bool = False
    refused_by_owner: bool = False
    asked_at: float = 0.0
    outcome: str = ""
    error_class: str = ""
    detail: str = ""
    reported: bool = False
    log_offset: int = 0

    @property
    def message(self) -> director_pb2.Assignment:
        """The assignment as the director sent it."""
        return director_pb2.Assignment.FromString(self.assignment)

    def to_json(self) -> bytes:
        """The record."""
        document: dict[str, Any] = asdict(self)
        document["stage"] = self.stage.value
        document["assignment"] = base64.b64encode(self.assignment).decode()
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Participation:
        """Read a record back.

        Raises:
            ValueError: it is not one.
        """
        document = json.loads(data)
        try:
            document["stage"] = Stage(document["stage"])
            document["assignment"] = base64.b64decode(document["assignment"])
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a participation: {error}") from error


def is_same_request(one: director_pb2.Assignment, other: director_pb2.Assignment) -> bool:
    """Tell whether two assignments ask for the same thing; where the aggregator listens may differ."""
    fields = ("experiment", "manifest", "signature", "signing_key", "submitted_by", "bundle_bytes")
    return all(getattr(one, field) == getattr(other, field) for field in fields) and list(one.shards) == list(
        other.shards
    )


class ParticipationStore:
    """All records below one folder; each experiment has a folder of its own there.

    Args:
        folder: made if missing, mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._all: dict[ExperimentId, Participation] = {}
        for path in sorted(folder.glob(f"*/{_RECORD}")):
            try:
                record = Participation.from_json(path.read_bytes())
            except (OSError, ValueError) as error:
                raise StorageError(f"{path} is not readable: {error}; mend it or remove its folder") from error
            self._all[record.experiment] = record
        self._forget_old()

    def __contains__(self, experiment: str) -> bool:
        return experiment in self._all

    def get(self, experiment: str) -> Participation | None:
        """Return the record, or None."""
        return self._all.get(ExperimentId(experiment))

    def all(self) -> list[Participation]:
        """Return all records, oldest first."""
        return sorted(self._all.values(), key=lambda record: record.asked_at)

    def at(self, stage: Stage) -> list[Participation]:
        """Return the records at one stage, oldest first."""
        return [record for record in self.all() if record.stage is stage]

    def folder_of(self, experiment: str) -> Path:
        """Return the experiment's folder, made if missing.

        Raises:
            StorageError: the disk refused.
        """
        folder = self.folder / check_name(experiment, "experiment id")
        with translated(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def save(self, record: Participation) -> Participation:
        """Write a record durably; then, and only then, it counts.

        Raises:
            StorageError: the disk refused.
        """
        write_atomically(self.folder_of(record.experiment) / _RECORD, record.to_json())
        self._all[record.experiment] = record
        return record

    def conclude(self, record: Participation, *, keeps_files: bool) -> Participation:
        """Write that a participation is over; over it is, even if the disk does not take it: a restart finds out anew.

        Args:
            record: refused or ended.
            keeps_files: what else is in the experiment's folder may not go to make room.

        Raises:
            StorageError: the disk refused, also once the rest of the folder had made room.
        """
        self._all[record.experiment] = record
        try:
            return self.save(record)
        except StorageError:
            if keeps_files:
                raise
            self.clean(record.experiment)
            return self.save(record)

    def update(self, experiment: str, **changes: Any) -> Participation:
        """Change fields of a record and save it.

        Raises:
            KeyError: there is no such record.
            StorageError: the disk refused.
        """
        return self.save(replace(self._all[ExperimentId(experiment)], **changes))

    def clean(self, experiment: str) -> None:
        """Remove all but the record from the experiment's folder."""
        for path in self.folder_of(experiment).iterdir():
            if path.name == _RECORD:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _forget_old(self) -> None:
        over = [record for record in self.all() if record.stage.is_over]
        for record in over[:-_KEPT]:
            shutil.rmtree(self.folder / record.experiment, ignore_errors=True)
            del self._all[record.experiment]
