"""What stays at a site between rounds: local tensors it trained, what its method keeps, kept optimizer state.

Rules, in order:

1. Training a round starts from the *kept* state and leaves a *pending* one. The server's verdict promotes the pending
   state (the update counted) or drops it; so a site's state never runs ahead of a model that does not know of it.
2. Both are files in the trainer's workspace, replaced atomically. Pending state is durable before the update leaves the
   site: a trainer that was restarted in between can still keep or drop it.
3. Training again drops what was pending: nobody will ask for it any more. State is known by round and attempt, so
   that a late verdict on an earlier attempt settles nothing else.
4. What a method keeps (a control variate, the error of a compressor) is settled like the rest: an update that did not
   count leaves it as it was.
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
    """State after a round; its arrays are owned by it and never written.

    Attributes:
        tensors: tensors of the model that stay local, by name.
        optimizer: state of the local optimizer, by ``<parameter>/<key>``.
        method: what the method keeps, by ``<slot>/<tensor>``; ``feedback.<payload>/<key>`` is what compression left.
    """

    tensors: dict[str, Array] = field(default_factory=dict)
    optimizer: dict[str, Array] = field(default_factory=dict)
    method: dict[str, Array] = field(default_factory=dict)


class StateStore:
    """Kept and pending state of one experiment at one site.

    Args:
        folder: the trainer's workspace. None: state lives in this object only.
        durable: state has reached the disk when `set_pending` returns. False: it survives the process, not the machine;
            the folder is made on first use.

    Raises:
        StorageError: a state file is there but cannot be read.
    """

    def __init__(self, folder: Path | None, *, durable: bool = True) -> None:
        self._durable = durable
        self._kept_path = None if folder is None else folder / "kept.state"
        self._pending_path = None if folder is None else folder / "pending.state"
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

    @property
    def pending(self) -> tuple[tuple[int, int], LocalState] | None:
        """Round and attempt of what waits for its verdict, and the state itself; owned by the store."""
        return self._pending

    def carried(self) -> StateStore:
        """Return the same state in memory only, to be sent to whoever works with it."""
        other = StateStore(None)
        other._kept, other._pending = self._kept, self._pending
        return other

    def of_round(self, number: int) -> LocalState:
        """Return the state that belongs to the model of a round: its pending state if there is one, else the kept."""
        return self._pending[1] if self._pending and self._pending[0][0] == number else self._kept

    def set_pending(self, number: int, attempt: int, state: LocalState) -> None:
        """Hold the state an attempt at a round left, durably, until `settle`.

        Raises:
            StorageError: it cannot be written.
        """
        if not state.tensors and not state.optimizer and not state.method:
            return
        self._pending = None
        if self._pending_path is not None:
            if not self._durable:
                self._pending_path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._pending_path, (number, attempt), state, durable=self._durable)
        self._pending = ((number, attempt), state)

    def drop_pending(self) -> None:
        """Forget what is pending.

        Raises:
            StorageError: the file cannot be removed.
        """
        if self._pending is None:
            return
        self._pending = None
        if self._pending_path is None:
            return
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
            if self._pending_path is not None and self._kept_path is not None:
                self._pending_path.replace(self._kept_path)
        except OSError as error:
            raise StorageError(f"cannot keep {self._pending_path}: {error.strerror}") from error
        self._kept, self._pending = self._pending[1], None


def _write(path: Path, of: tuple[int, int], state: LocalState, *, durable: bool) -> None:
    named = {f"tensor:{name}": value for name, value in state.tensors.items()}
    named.update((f"optimizer:{name}", value) for name, value in state.optimizer.items())
    named.update((f"method:{name}", value) for name, value in state.method.items())
    # Numbered names: a prefix must not push a tensor's name over the limit of a schema.
    names = sorted(named)
    arrays = {f"{place:06d}": named[name] for place, name in enumerate(names)}
    schema = TensorSchema.of(
        TensorSpec(name=key, dtype=DType.of(value.dtype), shape=value.shape) for key, value in arrays.items()
    )
    rows = [[spec.name, spec.dtype.value, list(spec.shape)] for spec in schema]
    head = json.dumps({"round": of[0], "attempt": of[1], "names": names, "rows": rows}).encode()
    data = head + b"\n" + pack(schema, arrays)
    try:
        if durable:
            write_atomically(path, data)
        else:
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path | None) -> tuple[tuple[int, int], LocalState] | None:
    try:
        if path is None or not path.exists():
            return None
        head, _, body = path.read_bytes().partition(b"\n")
        document = json.loads(head)
        schema = TensorSchema(
            tuple(TensorSpec(name=row[0], dtype=DType(row[1]), shape=tuple(row[2])) for row in document["rows"])
        )
        arrays = {key: np.array(value) for key, value in unpack(schema, body).items()}
        state = LocalState()
        parts = {"tensor": state.tensors, "optimizer": state.optimizer, "method": state.method}
        for place, name in enumerate(document["names"]):
            part, _, plain = name.partition(":")
            parts[part][plain] = arrays[f"{place:06d}"]
        return (int(document["round"]), int(document["attempt"])), state
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StorageError(f"the local state in {path} cannot be read: {error}") from error
