"""What a trainer hands over, checked as a stranger's would be: no byte leaves the site before it was checked.

In pieces, never the whole in memory:

1. The file is a regular one and has exactly the size of its schema; an encoded payload has at most the size its codec
   can make, and decodes.
2. Every float is finite and can be squared, after decoding where it is encoded: a NaN would poison the model of
   everyone, and an update without a norm is admitted nowhere.
3. Metrics are among those the plan fixes, and finite.
4. Examples are at least 1 and at most what the shard has; steps and seconds are not negative.

Payloads that are small or encoded are read through, and digested on the way, before their update is kept. A large one
that travels as it is is read once only: each piece is checked as it is sent (`OutgoingPayload`), and a bad one ends the
upload; what left before it was good by the same rules.

The aggregator checks all of this again. Clipping and noise come in here when there is a privacy floor: they need a pass
over the whole before any of it is sent. Failures are `TaskError` with a class of ours; numbers of the site go to the
site's log only.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from federation.compression import BLOCK_ELEMENTS, PayloadDecoder
from federation.errors import StorageError, TaskError
from federation.plan import check_metrics
from federation.tensors import NotFiniteError, TensorScan, TensorSchema
from federation.tensors.digest import PayloadHash
from federation.wire.payloads import IDENTITY_CODEC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.compression.codec import Buffer
    from federation.names import Digest
    from federation.plan import PayloadPlan
    from federation.tensors import Segment

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingClaim:
    """What a trainer says of its round of training, once checked.

    Attributes:
        examples: distinct training examples used.
        steps: optimizer steps taken.
        metrics: finite, names of the plan.
        seconds: time of the task itself, seconds.
        oracle_calls: gradients of single examples computed.
        peak_memory: most memory the trainer had resident at once, bytes; 0 if not known.
    """

    examples: int
    steps: int
    metrics: Mapping[str, float]
    seconds: float
    oracle_calls: int = 0
    peak_memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationClaim:
    """What a trainer says of an evaluation, once checked; fields as in `TrainingClaim`, over validation examples."""

    examples: int
    metrics: Mapping[str, float]
    seconds: float


def check_training(claim: TrainingClaim, *, shard_examples: int, metrics: tuple[str, ...]) -> TrainingClaim:
    """Return `claim` if a trainer may say so.

    Args:
        claim: what it says.
        shard_examples: training examples of the shard.
        metrics: names the plan fixes.

    Raises:
        TaskError: class ``WrongResult``.
    """
    _check_examples(claim.examples, at_least=1, at_most=shard_examples)
    for number, what in ((claim.steps, "optimizer steps"), (claim.oracle_calls, "oracle calls")):
        if number < 0:
            raise TaskError("WrongResult", traceback=f"{number} {what}")
    _check_seconds(claim.seconds)
    _check_metrics(claim.metrics, metrics)
    return claim


def check_evaluation(claim: EvaluationClaim, *, shard_examples: int, metrics: tuple[str, ...]) -> EvaluationClaim:
    """Return `claim` if a trainer may say so; arguments and errors as `check_training`."""
    _check_examples(claim.examples, at_least=0, at_most=shard_examples)
    _check_seconds(claim.seconds)
    _check_metrics(claim.metrics, metrics)
    return claim


def check_payload(descriptor: int, schema: TensorSchema, name: str) -> Digest:
    """Read one payload through and return its digest; blocks.

    Args:
        descriptor: open file of exactly ``schema.nbytes`` bytes.
        schema: its layout.
        name: payload name, for the site's log.

    Raises:
        TaskError: class ``NotFinite`` if a float is not finite or too large to be squared, ``WrongResult`` if the file
            became shorter.
    """
    running = PayloadHash()
    scan = TensorScan(schema)
    view = memoryview(bytearray(min(PIECE_BYTES, schema.nbytes)))
    offset = 0
    while offset < schema.nbytes:
        count = os.preadv(descriptor, [view[: schema.nbytes - offset]], offset)
        if count == 0:
            raise TaskError("WrongResult", traceback=f"payload {name!r} became shorter while it was read")
        running.update(view[:count])
        try:
            scan.feed(view[:count])
        except NotFiniteError as error:
            raise TaskError("NotFinite", traceback=f"payload {name!r}: {error}") from error
        offset += count
    return running.digest()


class OutgoingPayload:
    """The open file of a payload that is being sent; what was not checked yet is, before it is handed out.

    Bytes are checked once and in order, however often and from where on they are sent: those before the first that is
    asked for, which an earlier process sent, are read for that alone. For one thread at a time.

    Args:
        descriptor: open for reading; not closed here.
        name: of the payload.
        schema: its layout; None: it was checked before.
    """

    def __init__(self, descriptor: int, name: str, schema: TensorSchema | None) -> None:
        self._descriptor = descriptor
        self._name = name
        self._scan = TensorScan(schema) if schema is not None else None

    def pread(self, position: int, size: int) -> bytes:
        """Return the bytes at (position, size); blocks.

        Raises:
            TaskError: class ``NotFinite``, as `check_payload`; the payload is then of no further use.
            StorageError: they cannot be read, or the file became shorter.
        """
        data = self._pread(position, size)
        scan = self._scan
        if scan is not None and scan.position < position + size:
            try:
                while scan.position < position:
                    scan.feed(self._pread(scan.position, min(PIECE_BYTES, position - scan.position)))
                scan.feed(memoryview(data)[scan.position - position :])
            except NotFiniteError as error:
                raise TaskError("NotFinite", traceback=f"payload {self._name!r}: {error}") from error
        return data

    def _pread(self, position: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, position)
        except OSError as error:
            raise StorageError(f"payload {self._name} cannot be read: {error.strerror or error}") from error
        if len(data) != size:
            raise StorageError(f"payload {self._name} became shorter while it was sent")
        return data


def check_encoded(descriptor: int, nbytes: int, plan: PayloadPlan) -> Digest:
    """Read one encoded payload through, decode it block by block, and return the digest of its bytes; blocks.

    A frame may name the plan's codec, or the identity: an algorithm may send a round whole.

    Args:
        descriptor: open file.
        nbytes: its size, bytes.
        plan: name, schema and codec of the payload.

    Raises:
        TaskError: class ``WrongResult`` if it is no frame of this codec or became shorter, ``NotFinite`` if a decoded
            float is not finite or too large to be squared.
    """
    source = _File(descriptor, nbytes, plan.name)
    running = PayloadHash()
    view = memoryview(bytearray(min(PIECE_BYTES, nbytes)))
    for offset in range(0, nbytes, PIECE_BYTES):
        piece = view[: nbytes - offset]
        source.pread_into(offset, piece)
        running.update(piece)
    scan = TensorScan(plan.schema)
    try:
        decoder = PayloadDecoder(source, plan.schema, (plan.codec, IDENTITY_CODEC))
        for segment in plan.schema.segments:
            for part in _decoded(decoder, segment):
                scan.feed(part)
    except NotFiniteError as error:
        raise TaskError("NotFinite", traceback=f"payload {plan.name!r}: {error}") from error
    except ValueError as error:
        raise TaskError("WrongResult", traceback=f"payload {plan.name!r}: {error}") from error
    return running.digest()


def _decoded(decoder: PayloadDecoder, segment: Segment) -> Iterator[memoryview]:
    """Yield the bytes of a segment's elements, each piece valid until the next."""
    block = np.empty(min(BLOCK_ELEMENTS, segment.elements), segment.dtype.numpy)
    for first in range(0, segment.elements, BLOCK_ELEMENTS):
        part = block[: segment.elements - first]
        decoder.read(segment.offset + first * segment.dtype.itemsize, part)
        yield part.view(np.uint8).data


class _File:
    """An open file as `federation.compression.Source`."""

    def __init__(self, descriptor: int, nbytes: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self.nbytes = nbytes

    def pread_into(self, offset: int, view: Buffer) -> None:
        left = memoryview(view).cast("B")
        while left:
            count = os.preadv(self._descriptor, [left], offset)
            if count == 0:
                raise TaskError("WrongResult", traceback=f"payload {self._name!r} became shorter while it was read")
            left, offset = left[count:], offset + count


def _check_examples(examples: int, *, at_least: int, at_most: int) -> None:
    if not at_least <= examples <= at_most:
        raise TaskError("WrongResult", traceback=f"{examples} examples claimed, the shard has {at_most}")


def _check_seconds(seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise TaskError("WrongResult", traceback=f"{seconds} seconds claimed")


def _check_metrics(metrics: Mapping[str, float], allowed: tuple[str, ...]) -> None:
    try:
        check_metrics(dict(metrics), allowed)
    except ValueError as error:
        raise TaskError("WrongMetrics", traceback=str(error)) from error
