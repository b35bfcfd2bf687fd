"""An update that came whole in its site's session, as the messages that PushUpdate would have brought.

So that there is one way in for every update (`federation.aggregator.uploads`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.errors import MalformedMessageError
from federation.v1 import aggregator_pb2 as pb
from federation.wire.payloads import INLINE_BYTES
from federation.wire.pieces import MessagePiece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from federation.aggregator.receptions import Request


def check_whole(update: pb.WholeUpdate) -> None:
    """Check what PushUpdate's order of messages sees to.

    Raises:
        MalformedMessageError: it is too large for a session, or its payloads are not those of its header.
    """
    nbytes = sum(map(len, update.payloads))
    if nbytes > INLINE_BYTES:
        raise MalformedMessageError(f"an update of {nbytes} bytes in a session; above {INLINE_BYTES} use PushUpdate")
    if [len(data) for data in update.payloads] != [payload.encoded_bytes for payload in update.header.payloads]:
        raise MalformedMessageError("the payloads of an update are not those that its header announces")


async def as_messages(update: pb.WholeUpdate) -> AsyncIterator[Request]:
    """Yield what PushUpdate would have brought."""
    yield pb.PushUpdateRequest(header=update.header)
    for index, data in enumerate(update.payloads):
        if data:
            yield MessagePiece(0, memoryview(data), index)
    yield pb.PushUpdateRequest(commit=update.commit)
