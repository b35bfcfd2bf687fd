"""Named payloads: what travels each way, how it is encoded, and which bytes it must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.errors import InvalidNameError, MalformedMessageError
from federation.names import Digest, PayloadName, check_name
from federation.v1 import tensors_pb2
from federation.wire.schemas import check_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

IDENTITY_CODEC = "identity"
INLINE_BYTES = 256 << 10
"""Payloads up to this size travel inside their task: a small round needs no second call."""
MAX_PAYLOADS = 32
MAX_PAYLOAD_BYTES = 1 << 50

MODEL = PayloadName("model")
BASE = PayloadName("base")
DELTA = PayloadName("delta")
BUFFERS = PayloadName("buffers")
OPTIMIZER = PayloadName("optimizer")
STEP = PayloadName("step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One named payload.

    Attributes:
        name: ``model``, ``base``, ``delta``, ``buffers``, ``optimizer``, ``step``, or a method's own.
        schema_digest: digest of the schema that lays out its flat buffer.
        codec: how the flat buffer was encoded; ``identity`` for raw bytes.
        encoded_bytes: size on the wire.
        digest: BLAKE3 of the encoded bytes; None for an upload, where it follows at the end.
        from_digest: BLAKE3 of what a ``step`` is added to; None for whole payloads.
    """

    name: PayloadName
    schema_digest: Digest
    codec: str = IDENTITY_CODEC
    encoded_bytes: int
    digest: Digest | None = None
    from_digest: Digest | None = None


def payload_to_proto(payload: Payload) -> tensors_pb2.PayloadDescriptor:
    """Return a payload as a message."""
    return tensors_pb2.PayloadDescriptor(
        name=payload.name,
        schema_digest=payload.schema_digest,
        codec=payload.codec,
        encoded_bytes=payload.encoded_bytes,
        digest=payload.digest or b"",
        from_digest=payload.from_digest or b"",
    )


def payload_from_proto(message: tensors_pb2.PayloadDescriptor, *, with_digest: bool) -> Payload:
    """Read a payload.

    Args:
        message: from a peer.
        with_digest: True where the digest is required (downloads), False where it must be empty (uploads).

    Raises:
        MalformedMessageError: a name, digest or size is not valid.
    """
    try:
        name = PayloadName(check_name(message.name, "payload name"))
    except InvalidNameError as error:
        raise MalformedMessageError(str(error)) from error
    if message.encoded_bytes > MAX_PAYLOAD_BYTES:
        raise MalformedMessageError(f"payload {name} announces {message.encoded_bytes} bytes, more than any can have")
    if not 1 <= len(message.codec) <= 64:
        raise MalformedMessageError(f"payload {name} names no codec, or one of more than 64 characters")
    if not with_digest and message.digest:
        raise MalformedMessageError(f"payload {name} carries a digest in its header; uploads send it at the end")
    return Payload(
        name=name,
        schema_digest=check_digest(message.schema_digest, f"the schema of payload {name}"),
        codec=message.codec,
        encoded_bytes=message.encoded_bytes,
        digest=check_digest(message.digest, f"payload {name}") if with_digest else None,
        from_digest=check_digest(message.from_digest, f"what {name} is added to") if message.from_digest else None,
    )


def payloads_from_proto(messages: Sequence[tensors_pb2.PayloadDescriptor], *, with_digest: bool) -> tuple[Payload, ...]:
    """Read several payloads.

    Raises:
        MalformedMessageError: one is not valid, two share a name, or there are more than 32.
    """
    if len(messages) > MAX_PAYLOADS:
        raise MalformedMessageError(f"{len(messages)} payloads are more than {MAX_PAYLOADS}")
    payloads = tuple(payload_from_proto(message, with_digest=with_digest) for message in messages)
    if len({payload.name for payload in payloads}) != len(payloads):
        raise MalformedMessageError("two payloads share a name")
    return payloads
