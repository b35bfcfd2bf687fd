"""Sites that are honest but for one thing: they lie, are late, or vanish in the middle of an upload."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.errors import FederationError, UpdateRejectedError
from federation.tensors import unpack
from federation.testing.honest_sites import HonestSite
from federation.wire.payloads import DELTA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.v1 import aggregator_pb2 as pb


class Lie(Enum):
    """What a `LyingSite` lies about."""

    NOT_FINITE = "not_finite"
    WRONG_SCHEMA = "wrong_schema"
    TRUNCATED = "truncated"
    MILLION_EXAMPLES = "examples"
    CLOSED_ROUND = "closed_round"
    STALE_EPOCH = "stale_epoch"
    WRONG_CODEC = "wrong_codec"
    WRONG_MODEL = "wrong_model"
    METRICS = "metrics"
    CORRUPT = "corrupt"


class LyingSite(HonestSite):
    """Lies once in every update, and evaluates honestly.

    Args:
        lie: about what.
        rest: as `HonestSite`.

    Attributes:
        refusals: what it was told, update by update.
    """

    def __init__(self, *rest: Any, lie: Lie, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.lie = lie
        self.refusals: list[FederationError] = []

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload a lie, and remember what is said to it."""
        payloads = dict(payloads)
        most_bytes = None
        if self.lie is Lie.NOT_FINITE:
            size = len(payloads[DELTA])
            payloads[str(DELTA)] = np.full(size // 4, np.nan, dtype=np.float32).tobytes().ljust(size, b"\xff")
        elif self.lie is Lie.TRUNCATED:
            most_bytes = 0
        else:
            self._spoil(header)
        try:
            digests = [bytes(32) for _ in payloads] if self.lie is Lie.CORRUPT else None
            await self.push(header, payloads, most_bytes=most_bytes, digests=digests)
        except UpdateRejectedError as error:
            self.refusals.append(error)
            self.pending = None

    def _spoil(self, header: pb.UpdateHeader) -> None:
        if self.lie is Lie.WRONG_SCHEMA:
            header.payloads[0].schema_digest = bytes(32)
        elif self.lie is Lie.MILLION_EXAMPLES:
            header.examples = 1_000_000
        elif self.lie is Lie.CLOSED_ROUND:
            header.round += 1
        elif self.lie is Lie.STALE_EPOCH:
            header.epoch += 1
        elif self.lie is Lie.WRONG_CODEC:
            header.payloads[0].codec = "zip"
        elif self.lie is Lie.WRONG_MODEL:
            header.model_digest = bytes(32)
        elif self.lie is Lie.METRICS:
            header.metrics["loss"] = float("inf")


class LateSite(HonestSite):
    """Waits for `may_send` before each upload."""

    def __init__(self, *rest: Any, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.asked = asyncio.Event()
        self.may_send = asyncio.Event()
        self.refusals: list[FederationError] = []

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload once it may; what is said to it is remembered."""
        self.asked.set()
        await self.may_send.wait()
        try:
            await self.push(header, payloads)
        except UpdateRejectedError as error:
            self.refusals.append(error)


class VanishingSite(HonestSite):
    """Is gone in the middle of its first upload, having sent `sent_bytes` of it."""

    def __init__(self, *rest: Any, sent_bytes: int = 0, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.sent_bytes = sent_bytes

    async def run(self) -> str:
        """Take part until the first upload; the outcome is ``"vanished"``."""
        await self.connect()
        await self.ready()
        task = await self.next_task()
        payloads = self.train(task, unpack(self.meeting.spec.schema_.federated, await self.load(task)))
        await self.push(self.header(task, payloads, {}), payloads, most_bytes=self.sent_bytes, commit=False)
        await self.vanish()
        return "vanished"
