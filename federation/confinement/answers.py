"""What a trainer says, checked as a stranger's word: experiment code may have said it.

Checked here: that the answer belongs to the order, is of the kind asked for, and holds numbers that can be true. What
a plan fixes (which metrics, how many examples at most, a tensor's shape) its owner checks.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from federation.errors import MalformedMessageError, TaskError
from federation.plan import MAX_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.v1 import trainer_pb2

MAX_TRACEBACK_CHARACTERS = 64 * 1024
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}")
_METRIC_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")
_MAX_TEXT = 10_000


def check_answer(answer: trainer_pb2.TrainerAnswer, order: int, kind: str) -> None:
    """Check that `answer` answers `order` with a sound message of `kind`, a field name of ``TrainerAnswer.message``.

    Raises:
        TaskError: the trainer says that experiment code failed.
        MalformedMessageError: the answer cannot be one to this order.
    """
    if answer.order != order:
        raise MalformedMessageError(f"the trainer answered order {answer.order}, expected {order}")
    got = answer.WhichOneof("message")
    if got == "failed":
        raise failure(answer.failed)
    if got != kind:
        raise MalformedMessageError(f"the trainer answered with {got!r}, expected {kind!r}")
    if kind == "trained":
        _check_metrics(answer.trained.metrics)
        _check_seconds(answer.trained.seconds)
    elif kind == "evaluated":
        _check_metrics(answer.evaluated.metrics)
        _check_seconds(answer.evaluated.seconds)
    elif kind == "prepared":
        _check_seconds(answer.prepared.seconds)


def check_descriptions(described: trainer_pb2.ShardDescriptions, names: Sequence[str]) -> None:
    """Check that the shards described are those asked for, in their order.

    Raises:
        MalformedMessageError: they are not, or a text is too long.
    """
    got = [shard.name for shard in described.shards]
    if got != list(names):
        raise MalformedMessageError(f"the trainer described shards {got[:20]}, asked were {list(names)}")
    for shard in described.shards:
        if len(shard.description) > _MAX_TEXT or len(shard.error_text) > MAX_TRACEBACK_CHARACTERS:
            raise MalformedMessageError(f"the texts about shard {shard.name!r} are too long")
        if shard.error_class and not _CLASS_NAME.fullmatch(shard.error_class):
            raise MalformedMessageError(f"shard {shard.name!r}: {shard.error_class[:80]!r} is not a class name")


def failure(failed: trainer_pb2.OrderFailed) -> TaskError:
    """Return the error a trainer reports; a name that is no class name, which could carry data out, is replaced."""
    name = failed.error_class if _CLASS_NAME.fullmatch(failed.error_class) else "UnnamedError"
    return TaskError(name, traceback=failed.traceback[-MAX_TRACEBACK_CHARACTERS:], permanent=failed.permanent)


def _check_metrics(metrics: Mapping[str, float]) -> None:
    if len(metrics) > MAX_METRICS:
        raise MalformedMessageError(f"the trainer reports {len(metrics)} metrics, at most {MAX_METRICS} are allowed")
    for name, value in metrics.items():
        if not _METRIC_NAME.fullmatch(name):
            raise MalformedMessageError(f"the trainer reports a metric named {name[:80]!r}, which is not a valid name")
        if not math.isfinite(value):
            raise MalformedMessageError(f"the trainer reports {value} as metric {name!r}, expected a finite number")


def _check_seconds(seconds: float) -> None:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise MalformedMessageError(f"the trainer reports a duration of {seconds} seconds")
