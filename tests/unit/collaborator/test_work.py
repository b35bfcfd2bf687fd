"""What becomes of the record of a kept update: digests that are told, or taken before a stop."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from federation.collaborator.ordering import Asking
from federation.collaborator.work import Work
from federation.errors import StorageError
from federation.names import Attempt, Digest, RoundNumber
from federation.storage.retained import RetainedFile, RetainedUpdate, Retention
from federation.telemetry.metrics import Metrics
from federation.tensors.digest import payload_digest
from federation.v1 import aggregator_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = bytes(3 << 20)
DIGEST = payload_digest(CONTENT)


@dataclass
class Admitting:
    """An aggregator that admits what is sent, and tells its digests."""

    pushed: list[RetainedUpdate] = field(default_factory=list)

    async def push(self, update: RetainedUpdate) -> tuple[Digest, ...]:
        self.pushed.append(update)
        return (DIGEST,)


def work_in(folder: Path, uploads: Any = None) -> Work:
    path = folder / "delta.bin"
    path.write_bytes(CONTENT)
    file = RetainedFile(payload="delta", path=path, nbytes=len(CONTENT), digest=None)
    header = pb.UpdateHeader(round=1, attempt=1, update_id=b"id", model_digest=b"model").SerializeToString()
    update = RetainedUpdate(round=RoundNumber(1), attempt=Attempt(1), header=header, files=(file,))
    retention = Retention(folder / "kept", boot="one")
    retention.keep(update)
    nothing: Any = None
    return Work(
        config=nothing, spec=nothing, exchange=nothing, downloads=nothing, uploads=uploads, trainer=nothing,
        retention=retention, metrics=Metrics(), retained=update,
    )  # fmt: skip


async def test_an_update_that_was_admitted_stays_so_where_the_disk_takes_no_digest(tmp_path: Path) -> None:
    uploads = Admitting()
    work = work_in(tmp_path, uploads)
    kept = work.retained
    (tmp_path / "kept" / "retained").unlink()
    (tmp_path / "kept" / "retained").mkdir()
    order: Any = SimpleNamespace(asking=Asking(round=RoundNumber(1), attempt=Attempt(1)), model_digest=Digest(b"model"))
    await work.train(order)
    assert uploads.pushed == [kept]
    assert work.retained == kept


async def test_a_sealed_update_is_believed_after_the_machine_has_started_anew(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    assert Retention(tmp_path / "kept", boot="one").current() == work.retained
    await work.seal()
    found = Retention(tmp_path / "kept", boot="two").current()
    assert found == work.retained
    assert found is not None and found.files[0].digest == DIGEST


async def test_an_update_that_is_settled_while_it_is_sealed_stays_forgotten(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    sealing = asyncio.create_task(work.seal())
    await asyncio.sleep(0)  # it has begun
    work.retention.release(RoundNumber(1))
    work.retained = None
    await sealing
    assert work.retained is None
    assert Retention(tmp_path / "kept", boot="one").current() is None


@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
async def test_what_a_trainer_lays_in_place_of_its_update_is_neither_waited_for_nor_followed(
    tmp_path: Path, lay: Any
) -> None:
    work = work_in(tmp_path)
    path = tmp_path / "delta.bin"
    path.unlink()
    lay(path)
    with pytest.raises(StorageError):
        await work.seal()
