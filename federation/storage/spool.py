"""The spool: where uploads land, in reused preallocated files, and from which they are aggregated.

Rules, in order:

1. Room for a whole update is reserved before its first byte; a full disk refuses that update and touches no other.
2. A file is never given back to the disk: first touch costs twenty times what overwriting does.
3. An update counts from the moment its record is written: one line behind its CRC-32, over the last one of the same
   slot, in place, as making, renaming and removing a file each time would cost several times as much. A killed process
   loses what was partly received, never what was admitted.
4. Nothing is fsynced on the way; after a power loss a record may be torn, or describe bytes that never reached the
   disk, so `recover` believes checksums and digests. The site keeps its update until the round is committed.
5. Per (round, site) there is at most one update; by (attempt, round, site) an upload is idempotent, and under the same
   id it goes on where it was cut, within the life of the process.
6. What was forgotten reads and writes nothing any more, whoever still holds it: its file may be another's by now.

A small update's methods wait for no disk, so they may be called in an event loop while a thread has the spool.
Against other processes it is not locked: the journal of the same folder is.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.errors import InvalidNameError, StorageError
from federation.names import Attempt, Digest, RoundNumber, SiteName, check_name
from federation.storage.checked_lines import checked, text_of
from federation.storage.disk import Buffer, pread_into, preallocate, pwrite_all, translated, write_over
from federation.tensors.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_RECORD_VERSION = 2
_NOTHING = b"-\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateKey:
    """What makes an upload the same upload: held bytes count for equal keys only.

    Attributes:
        site: who sends it.
        round: round it answers.
        attempt: attempt it answers.
        update_id: its id, random, chosen by the site.
    """

    site: SiteName
    round: RoundNumber
    attempt: Attempt
    update_id: bytes


class SpoolPayload:
    """One payload of an update: a range of a spool file. Implements `Readable`.

    Attributes:
        nbytes: announced size, bytes.
        received: bytes written so far, without a gap.
    """

    def __init__(self, descriptor: int, path: Path, start: int, nbytes: int, *, received: int = 0) -> None:
        self.nbytes = nbytes
        self.received = received
        self._descriptor = descriptor
        self._path = path
        self._start = start
        self._is_revoked = False
        self._writing = threading.Lock()

    def revoke(self) -> None:
        """Take the file away: returns once no write is under way, and none begins after."""
        with self._writing:
            self._is_revoked = True

    def pwrite(self, offset: int, view: Buffer) -> None:
        """Write bytes that were checked, at `received`.

        Raises:
            RuntimeError: the update was forgotten.
            ValueError: they leave a gap, overlap, or pass the end.
            DiskFullError: there is no room, which preallocation makes rare.
            StorageError: the disk failed.
        """
        nbytes = memoryview(view).nbytes
        if offset != self.received or offset + nbytes > self.nbytes:
            raise ValueError(f"write of {nbytes} bytes at {offset}, expected at {self.received} up to {self.nbytes}")
        with self._writing:
            self._require_held()
            pwrite_all(self._descriptor, view, self._start + offset, self._path)
            self.received += nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        """Fill `view` with the payload's bytes from `offset` on.

        Raises:
            RuntimeError: the update was forgotten.
            StorageError: they are not all there, or the disk failed.
        """
        self._require_held()
        if offset + memoryview(view).nbytes > self.nbytes:
            raise StorageError(f"{self._path}: read past the {self.nbytes} bytes of a payload")
        pread_into(self._descriptor, view, self._start + offset, self._path)

    def digest(self) -> Digest:
        """Return the digest of the whole payload, in one pass.

        Raises:
            StorageError: the disk failed.
        """
        return digest_of(self.nbytes, self.pread_into)

    def _require_held(self) -> None:
        if self._is_revoked:
            raise RuntimeError(f"{self._path}: this update was forgotten, the file may be another's")


class SpooledUpdate:
    """One update in the spool, partly received or admitted.

    Attributes:
        key: site, round, attempt, id.
        header: what was given to `Spool.begin`.
        payloads: where its payloads go, in the order announced.
        facts: what was given to `Spool.admit`; empty before.
        is_admitted: whether it counts.
    """

    def __init__(self, key: UpdateKey, header: bytes, payload_bytes: Sequence[int], slot: _Slot) -> None:
        self.key = key
        self.header = header
        self.facts: dict[str, Any] = {}
        self.is_admitted = False
        self.payloads: tuple[SpoolPayload, ...] = slot.payloads(payload_bytes)
        self._slot = slot

    @property
    def held(self) -> tuple[int, ...]:
        """Bytes received of each payload."""
        return tuple(payload.received for payload in self.payloads)


class Spool:
    """The uploads of one experiment. Methods and payloads may be used from any thread.

    Args:
        folder: made if missing; on a local disk.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._updates: dict[tuple[RoundNumber, SiteName], SpooledUpdate] = {}
        self._turn = threading.RLock()
        with translated(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            paths = sorted(folder.glob("slot-*.bin"))
        self._free = [_Slot(path) for path in paths]
        self._slots = len(paths)

    def begin(self, key: UpdateKey, payload_bytes: Sequence[int], header: bytes) -> SpooledUpdate:
        """Reserve room for an update, or return the one that was begun or admitted before.

        Args:
            key: an equal key resumes; another one of the same site and round replaces what is there, unless that is
                admitted for the same attempt.
            payload_bytes: size of each payload.
            header: what to find again after a restart, such as the announcement.

        Returns:
            The update of this site, round and attempt: if `is_admitted`, perhaps another than was asked for.

        Raises:
            DiskFullError: there is no room; every other update is intact.
            StorageError: the disk failed.
        """
        with self._turn:
            present = self.find(key.site, key.round)
            if present is not None:
                sizes = [payload.nbytes for payload in present.payloads]
                is_same = present.key == key and sizes == list(payload_bytes)
                if is_same or (present.is_admitted and present.key.attempt == key.attempt):
                    return present
                self.discard(present)
            check_name(key.site, "site name")
            slot = self._take(sum(payload_bytes))
            update = SpooledUpdate(key, header, payload_bytes, slot)
            self._updates[key.round, key.site] = update
            return update

    def find(self, site: SiteName, round_number: RoundNumber) -> SpooledUpdate | None:
        """Return what this site sent for this round, or None."""
        return self._updates.get((round_number, site))

    def admit(self, update: SpooledUpdate, digests: Sequence[Digest], facts: dict[str, Any]) -> None:
        """Let a whole, checked update count. Once this returns it survives a killed process. Idempotent.

        Args:
            update: every byte received.
            digests: of each payload, verified by the caller.
            facts: JSON object to find again after a restart, such as norm and times.

        Raises:
            RuntimeError: bytes are missing, or it was forgotten.
            StorageError: the disk refused; the update does not count.
        """
        with self._turn:
            if self.find(update.key.site, update.key.round) is not update:
                raise RuntimeError(f"update of {update.key.site} for round {update.key.round} was forgotten")
            if update.is_admitted:
                return
            if any(payload.received != payload.nbytes for payload in update.payloads) or len(digests) != len(
                update.payloads
            ):
                raise RuntimeError(f"update of {update.key.site} is not whole: {update.held}")
            record = {
                "version": _RECORD_VERSION,
                "site": update.key.site,
                "round": update.key.round,
                "attempt": update.key.attempt,
                "update_id": update.key.update_id.hex(),
                "header": update.header.hex(),
                "bytes": [payload.nbytes for payload in update.payloads],
                "digests": [digest.hex() for digest in digests],
                "facts": facts,
            }
            update._slot.write_record(record)
            update.facts = facts
            update.is_admitted = True

    def admitted(self, round_number: RoundNumber) -> list[SpooledUpdate]:
        """Return what counts for a round, by site name."""
        with self._turn:
            found = (update for (number, _), update in self._updates.items() if number == round_number)
            return sorted((update for update in found if update.is_admitted), key=lambda update: update.key.site)

    def recover(self, is_awaited: Callable[[UpdateKey], bool]) -> list[SpooledUpdate]:
        """Find what an earlier process admitted; called once, before any `begin`.

        Records of what is not awaited, and those whose bytes are not what they say, are dropped.

        Args:
            is_awaited: tells whether the task an update answers is still of interest.

        Returns:
            Every update that was kept, by site name.

        Raises:
            StorageError: the disk failed.
        """
        with self._turn:
            for slot in list(self._free):
                update = _read_record(slot)
                # Of two for one task, which only a power loss leaves, one is as good as the other.
                if update is None or not is_awaited(update.key) or self.find(update.key.site, update.key.round):
                    slot.forget_record()
                    continue
                self._free.remove(slot)
                self._updates[update.key.round, update.key.site] = update
            return sorted(self._updates.values(), key=lambda update: update.key.site)

    def discard(self, update: SpooledUpdate) -> None:
        """Forget an update; its file is reused, and whoever still holds the update can no longer touch it.

        Raises:
            StorageError: the disk failed.
        """
        with self._turn:
            if self._updates.get((update.key.round, update.key.site)) is not update:
                return
            for payload in update.payloads:
                payload.revoke()
            if update.is_admitted:
                update._slot.forget_record()
            del self._updates[update.key.round, update.key.site]
            self._free.append(update._slot)

    def release(self, round_number: RoundNumber) -> None:
        """Forget everything up to a round, which is committed or given up.

        Raises:
            StorageError: the disk failed.
        """
        with self._turn:
            for update in [update for (number, _), update in self._updates.items() if number <= round_number]:
                self.discard(update)

    def release_others(self, is_kept: Callable[[UpdateKey], bool]) -> None:
        """Forget all but some updates, where those of several rounds lie side by side.

        Raises:
            StorageError: the disk failed.
        """
        with self._turn:
            for update in [update for update in self._updates.values() if not is_kept(update.key)]:
                self.discard(update)

    def close(self) -> None:
        """Close every file; what was admitted stays."""
        with self._turn:
            for slot in [*self._free, *(update._slot for update in self._updates.values())]:
                slot.close()
            self._free.clear()
            self._updates.clear()

    def _take(self, nbytes: int) -> _Slot:
        """Return a free slot of at least this size: the smallest that is large enough, or the largest, grown."""
        fitting = [slot for slot in self._free if slot.size >= nbytes]
        if fitting:
            slot = min(fitting, key=lambda slot: slot.size)
        elif self._free:
            slot = max(self._free, key=lambda slot: slot.size)
        else:
            slot = _Slot(self._folder / f"slot-{self._slots:04d}.bin")
            self._slots += 1
            self._free.append(slot)
        slot.reserve(nbytes)
        self._free.remove(slot)
        return slot


class _Slot:
    """One reused file, and the record of the admitted update in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = path.with_name(path.stem.replace("slot", "admitted"))
        with translated(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self.size = os.fstat(self._descriptor).st_size

    def reserve(self, nbytes: int) -> None:
        preallocate(self._descriptor, nbytes, self.path)
        self.size = max(self.size, nbytes)

    def payloads(self, sizes: Sequence[int], *, complete: bool = False) -> tuple[SpoolPayload, ...]:
        start, payloads = 0, []
        for nbytes in sizes:
            received = nbytes if complete else 0
            payloads.append(SpoolPayload(self._descriptor, self.path, start, nbytes, received=received))
            start += nbytes
        return tuple(payloads)

    def write_record(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, allow_nan=False).encode()
        write_over(self._record, checked(text) + b"\n")

    def forget_record(self) -> None:
        if self._record.exists():
            write_over(self._record, _NOTHING)

    def read_record(self) -> bytes:
        """Return the text of the record; empty if there is none, or it is torn."""
        if not self._record.exists():
            return b""
        with translated(self._record):
            line = self._record.read_bytes().partition(b"\n")[0]  # behind it may be the rest of a longer one
        return text_of(line) or b""

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_record(slot: _Slot) -> SpooledUpdate | None:
    """Return the update that a slot's record describes if its bytes are there and right."""
    with contextlib.suppress(KeyError, TypeError, ValueError, InvalidNameError, StorageError):
        record = json.loads(slot.read_record())
        key = UpdateKey(
            site=SiteName(check_name(record["site"], "site name")),
            round=RoundNumber(int(record["round"])),
            attempt=Attempt(int(record["attempt"])),
            update_id=bytes.fromhex(record["update_id"]),
        )
        update = SpooledUpdate(key, bytes.fromhex(record["header"]), record["bytes"], slot)
        update.payloads = slot.payloads(record["bytes"], complete=True)
        digests = [bytes.fromhex(digest) for digest in record["digests"]]
        if record["version"] == _RECORD_VERSION and [payload.digest() for payload in update.payloads] == digests:
            update.facts = dict(record["facts"])
            update.is_admitted = True
            return update
    return None
