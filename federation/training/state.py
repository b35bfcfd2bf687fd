"""What stays at a site between rounds: local tensors it trained, and its optimizer's state if the plan keeps it.

Rules, in order:

1. Training a round starts from the *kept* state and leaves a *pending* one. The server's verdict promotes the pending
   state (the update counted) or drops it; so a site's state never runs ahead of a model that does not know of it.
2. Both are files in the trainer's workspace, replaced atomically. Pending state is durable before the update leaves the
   site: a trainer that was restarted in between can still keep or drop it.
3. Training again drops what was pending: nobody will ask for it any more. State is known by round and attempt, so
   that a late verdict on an earlier attempt settles nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from federation.errors import StorageError
from federation.runtime.records import write_atomically
from federation.tensors import DType, TensorSchema, TensorSpec, pack, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from federation.tensors.buffers import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """State after a round: `tensors` of the model that stay local, and `optimizer` state; arrays are owned by this."""

    tensors: dict[str, Array] = field(default_factory=dict)
    optimizer: dict[str, Array] = field(default_factory=dict)


class StateStore:
    """Kept and pending state of one experiment at one site.

    Args:
        folder: the trainer's workspace.

    Raises:
        StorageError: a state file is there but cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._kept_path = folder / "kept.state"
        self._pending_path = folder / "pending.state"
        kept = _read(self._kept_path)
        self._kept = kept[1] if kept else LocalState()
        self._pending = _read(self._pending_path)

    @property
    def kept(self) -> LocalState:
        """What the next round starts from; empty before the first round that counted."""
        return self._kept

    @property
    def has_pending(self) -> bool:
        """Whether there is state that waits for its verdict."""
        return self._pending is not None

    def of_round(self, number: int) -> LocalState:
        """Return the state that belongs to the model of a round: its pending state if there is one, else the kept."""
        return self._pending[1] if self._pending and self._pending[0][0] == number else self._kept

    def set_pending(self, number: int, attempt: int, state: LocalState) -> None:
        """Hold the state an attempt at a round left, durably, until `settle`.

        Raises:
            StorageError: it cannot be written.
        """
        if not state.tensors and not state.optimizer:
            return
        self._pending = None
        _write(self._pending_path, (number, attempt), state)
        self._pending = ((number, attempt), state)

    def drop_pending(self) -> None:
        """Forget what is pending.

        Raises:
            StorageError: the file cannot be removed.
        """
        if self._pending is None:
            return
        self._pending = None
        try:
            self._pending_path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {self._pending_path}: {error.strerror}") from error

    def settle(self, number: int, attempt: int, *, counted: bool) -> None:
        """Promote (the update counted) or drop what an attempt left. Harmless if repeated or nothing of it is pending.

        Raises:
            StorageError: the file cannot be moved; nothing changed.
        """
        if self._pending is None or self._pending[0] != (number, attempt):
            return
        if not counted:
            self.drop_pending()
            return
        try:
            self._pending_path.replace(self._kept_path)
        except OSError as error:
            raise StorageError(f"cannot keep {self._pending_path}: {error.strerror}") from error
        self._kept, self._pending = self._pending[1], None


def _write(path: Path, of: tuple[int, int], state: LocalState) -> None:
    named = {f"tensor:{name}": value for name, value in state.tensors.items()}
    named.update((f"optimizer:{name}", value) for name, value in state.optimizer.items())
    # Numbered names: a prefix must not push a tensor's name over the limit of a schema.
    names = sorted(named)
    arrays = {f"{place:06d}": named[name] for place, name in enumerate(names)}
    schema = TensorSchema.of(
        TensorSpec(name=key, dtype=DType.of(value.dtype), shape=value.shape) for key, value in arrays.items()
    )
    rows = [[spec.name, spec.dtype.value, list(spec.shape)] for spec in schema]
    head = json.dumps({"round": of[0], "attempt": of[1], "names": names, "rows": rows}).encode()
    try:
        write_atomically(path, head + b"\n" + pack(schema, arrays))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> tuple[tuple[int, int], LocalState] | None:
    try:
        if not path.exists():
            return None
        head, _, body = path.read_bytes().partition(b"\n")
        document = json.loads(head)
        schema = TensorSchema(
            tuple(TensorSpec(name=row[0], dtype=DType(row[1]), shape=tuple(row[2])) for row in document["rows"])
        )
        arrays = {key: np.array(value) for key, value in unpack(schema, body).items()}
        state = LocalState()
        for place, name in enumerate(document["names"]):
            part, _, plain = name.partition(":")
            (state.tensors if part == "tensor" else state.optimizer)[plain] = arrays[f"{place:06d}"]
        return (int(document["round"]), int(document["attempt"])), state
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StorageError(f"the local state in {path} cannot be read: {error}") from error
