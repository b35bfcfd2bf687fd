"""What an update that a site keeps until its verdict (`federation.storage.retained`) says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.collaborator.ordering import Asking
from federation.storage.retained import RetainedUpdate, file_digest
from federation.v1 import aggregator_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.collaborator.tasks import TaskOrder
    from federation.names import Digest


def update_id(update: RetainedUpdate) -> bytes:
    """Return the id an update was kept under."""
    return bytes(aggregator_pb2.UpdateHeader.FromString(update.header).update_id)


def asking_of(update: RetainedUpdate) -> Asking:
    """Return what an update answers."""
    return Asking(round=update.round, attempt=update.attempt)


def answers(update: RetainedUpdate, order: TaskOrder) -> bool:
    """Return whether a kept update is what an order asks for: same round, same attempt, from the same model."""
    header = aggregator_pb2.UpdateHeader.FromString(update.header)
    return asking_of(update) == order.asking and header.model_digest == order.model_digest


def digests_of(update: RetainedUpdate, is_over: Callable[[], bool]) -> list[Digest]:
    """Return the digest of each payload, read from its file where it is not known; blocks.

    Args:
        update: what was kept.
        is_over: asked again and again: whether to read no further.

    Raises:
        StorageError: a file cannot be read.
    """
    return [file.digest or file_digest(file, is_over) for file in update.files]
