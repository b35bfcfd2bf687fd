"""What sites are told: tasks with their payloads, and verdicts, as messages in their sessions.

A payload that fits into a task travels inside it, unless its site was sent it before in the same session: what a site
just evaluated it trains from next. Should it have lost that, it pulls it. A site that was named the model before is
given the step from there in place of the model, where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.aggregator.broadcast import Offer, fill_task, offers_inside
from federation.v1 import aggregator_pb2
from federation.wire.payloads import MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.aggregator.bookkeeping import RoundBook
    from federation.aggregator.sessions import Sessions
    from federation.names import Attempt, Epoch, RoundNumber, SiteName

LEAST_DEADLINE_S = 0.001
"""A task that is sent as its time runs out still says that it has some."""


class Dispatch:
    """Sends tasks and verdicts.

    Args:
        sessions: the sites' sessions.
        book: told of the bytes that are sent.
        epoch: of this process.
    """

    def __init__(self, sessions: Sessions, book: RoundBook, epoch: Epoch) -> None:
        self._sessions = sessions
        self._book = book
        self._epoch = epoch

    def task(
        self,
        kind: aggregator_pb2.TaskKind,
        asking: tuple[RoundNumber, Attempt],
        sites: Sequence[SiteName],
        offers: Sequence[Offer],
        *,
        deadline_s: float,
    ) -> None:
        """Send a task to those of the sites that have a session.

        Args:
            kind: train or evaluate.
            asking: round and attempt it belongs to.
            sites: whom to send it to.
            offers: its payloads.
            deadline_s: seconds left to answer.
        """
        round_number, attempt = asking
        task = aggregator_pb2.Task(
            kind=kind,
            round=round_number,
            attempt=attempt,
            epoch=self._epoch,
            deadline_s=max(deadline_s, LEAST_DEADLINE_S),
        )
        fill_task(task, offers)
        replies: dict[tuple[Offer, ...], aggregator_pb2.ParticipateReply] = {}
        for site in sites:
            inlined = self._sessions.inlined(site)
            inside = offers_inside(offers, inlined)
            if inside not in replies:
                replies[inside] = _with_inline(task, inside)
            if self._sessions.send(site, replies[inside]):
                inlined[MODEL] = offers[0].payload.digest or b""  # inside, or pulled, or made by a step
                for offer in inside:
                    inlined[offer.payload.name] = offer.payload.digest or b""
                    self._book.sent(site, offer.payload.name, len(offer.inline or b""))

    def verdict(self, site: SiteName, asking: tuple[RoundNumber, Attempt], update_id: bytes, reason: str) -> None:
        """Tell a site what became of its update; arguments as `make_verdict`."""
        self._sessions.send(site, self.make_verdict(asking, update_id, reason))

    def make_verdict(
        self, asking: tuple[RoundNumber, Attempt], update_id: bytes, reason: str
    ) -> aggregator_pb2.ParticipateReply:
        """Return the message that says what became of an update.

        Args:
            asking: round and attempt of the task it answered.
            update_id: which update it is.
            reason: why it did not count; empty if it did.
        """
        round_number, attempt = asking
        return aggregator_pb2.ParticipateReply(
            verdict=aggregator_pb2.Verdict(
                round=round_number,
                attempt=attempt,
                update_id=update_id,
                epoch=self._epoch,
                counted=not reason,
                reason=reason,
            )
        )


def _with_inline(task: aggregator_pb2.Task, inside: tuple[Offer, ...]) -> aggregator_pb2.ParticipateReply:
    """Return the message with a task that has these of its payloads inside and no others."""
    digests = {offer.payload.digest for offer in inside}
    reply = aggregator_pb2.ParticipateReply(task=task)
    kept = [part for part in task.inline if part.digest in digests]
    if len(kept) < len(task.inline):
        del reply.task.inline[:]
        reply.task.inline.extend(kept)
    return reply
