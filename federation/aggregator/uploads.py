"""Updates on their way in: announced, received in pieces, checked, admitted.

Rules, in order:

1. A site has one upload at a time (`federation.aggregator.upload_streams`).
2. An update that was admitted for this attempt is acknowledged again, whatever is sent.
3. Task, then claim, are checked before a byte is taken (`federation.rounds.admission`); the bytes as they arrive, in
   one pass (`federation.aggregator.receptions`); norm and digests at the end. Only then is it admitted, in the spool
   first.
4. Whatever is wrong with an update refuses it, one that cannot be read too, and the site is done for this attempt. A
   cut transfer refuses nothing: it goes on where it stopped. What answers no open task is refused, and says only that
   its site is done with that.
5. When the attempt closes, uploads in progress end with CLOSED_ROUND. Where rounds overlap, those end that answer
   another task than the one their site goes on with; also when a site is given a new task, or is lost.
6. An update counts for the task it was announced for, and for no other: a site that was asked anew meanwhile cannot
   answer its new task with it, nor be refused for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from federation.aggregator.admitted import AdmittedUpdate, expected_payloads, read_admitted
from federation.aggregator.receptions import Receptions, asking_of, key_of
from federation.aggregator.turns import CROWD_PIECE_BYTES, Turn, Turns
from federation.aggregator.upload_streams import CLOSED, UploadStream, UploadStreams
from federation.aggregator.whole_updates import as_messages, check_whole
from federation.errors import MalformedMessageError, Refusal, StorageError, TransportError, UpdateRejectedError
from federation.names import Attempt, RoundNumber
from federation.rounds import admission
from federation.rounds.events import ModelHeld, SiteFailed, SiteFree, UpdateAdmitted, UpdateRefused
from federation.v1 import aggregator_pb2 as pb
from federation.wire.chunks import CHUNK_BYTES
from federation.wire.pieces import MessagePiece
from federation.wire.updates import UpdateAnnouncement, announcement_from_proto

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Executor

    from federation.aggregator.receptions import Asking, Reception, Request
    from federation.names import Digest, SiteName
    from federation.plan import ExperimentSpec
    from federation.rounds.events import Event
    from federation.runtime.clock import Clock
    from federation.storage.spool import Spool, UpdateKey
    from federation.telemetry.metrics import Metrics
    from federation.transport.bulk import BulkServer, Ticket
    from federation.transport.calls import Call


_NOTHING: Mapping[SiteName, Asking] = MappingProxyType({})
_ANSWERS_NO_TASK = frozenset({Refusal.UNKNOWN_EXPERIMENT, Refusal.STALE_EPOCH, Refusal.CLOSED_ROUND, Refusal.NOT_ASKED})


class OpenRound(Protocol):
    """The round in progress, as uploads see it."""

    def expectation(self, site: SiteName) -> admission.Expectation:
        """Return what an update of this site must look like now."""

    def is_asked(self, site: SiteName) -> bool:
        """Tell whether an update of this site would be taken now."""

    def examples_cap(self, site: SiteName) -> int:
        """Return the most examples this site may claim."""

    @property
    def norms(self) -> admission.NormWindow:
        """Norms of the last committed rounds."""

    def handle(self, event: Event) -> None:
        """Take in what happened."""


class Uploads:
    """All uploads of one experiment.

    Args:
        spec: schemas and plan.
        spool: where they go; only used on `disk`.
        round_: the round in progress.
        disk: the one thread that has spool, journal and checkpoints.
        pool: threads that check pieces.
        lines: over which large updates come.
        clock: measures transfers.
        metrics: counts admissions, refusals, transfers and bytes.

    Attributes:
        expected: payloads of every update, in order.
        arrivals: numbers that tell in which order updates were admitted.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        spool: Spool,
        round_: OpenRound,
        *,
        disk: Executor,
        pool: Executor,
        lines: BulkServer,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._plans = spec.uploads()
        self.expected = expected_payloads(self._plans)
        self._plan = spec.plan
        self._spool = spool
        self._round = round_
        self._disk = disk
        self._lines = lines
        self._clock = clock
        self._metrics = metrics
        self._streams = UploadStreams(metrics)
        self._receptions = Receptions(
            self._plans, spool, disk=disk, pool=pool, lines=lines, clock=clock, metrics=metrics
        )
        self._announced: dict[SiteName, UpdateKey] = {}
        self._before = 0
        self._turns = Turns(clock)
        self.arrivals = itertools.count(1)

    def update_ids(self, round_number: RoundNumber) -> dict[SiteName, bytes]:
        """Return the id of each update that was announced or admitted in the present attempt."""
        announced = {site: key.update_id for site, key in self._announced.items()}
        admitted = {update.key.site: update.key.update_id for update in self._spool.admitted(round_number)}
        return {**announced, **admitted}

    def admitted(self, round_number: RoundNumber) -> list[AdmittedUpdate]:
        """Return the admitted updates of a round, in name order."""
        return [read_admitted(update, self._plans) for update in self._spool.admitted(round_number)]

    def update_id(self, site: SiteName, round_number: RoundNumber) -> bytes | None:
        """Return the id of what a site announced, or had admitted, for its task of a round; None if nothing."""
        update = self._spool.find(site, round_number)
        if update is not None and update.is_admitted:
            return update.key.update_id
        announced = self._announced.get(site)
        return announced.update_id if announced is not None and announced.round == round_number else None

    def admitted_of(self, site: SiteName, round_number: RoundNumber) -> AdmittedUpdate:
        """Return a site's admitted update for its task of a round.

        Raises:
            KeyError: it has none.
        """
        update = self._spool.find(site, round_number)
        if update is None or not update.is_admitted:
            raise KeyError(site)
        return read_admitted(update, self._plans)

    def close_attempt(self, but: Mapping[SiteName, Asking] = _NOTHING) -> None:
        """End uploads in progress: the attempt takes no more.

        Args:
            but: task of each site that goes on: uploads that answer it do too, and only those.
        """
        for stream in self._streams.close(but):
            self._round.handle(SiteFree(stream.site, *stream.asking))
        self._receptions.keep_only(but)

    def turn_to(self, sites: Iterable[SiteName], asking: Asking) -> None:
        """End what sites that are given a task still send for another one."""
        self._streams.turn_to(sites, asking)

    def interrupt(self, site: SiteName) -> None:
        """End the upload of a site that is lost; it goes on where it was if the site comes back to the same task."""
        self._streams.interrupt(site)

    async def settle(self, but: Mapping[SiteName, Asking] = _NOTHING) -> None:
        """Return once no ended upload touches the spool any more; arguments as `close_attempt`."""
        await self._streams.settle(but)

    @property
    def _is_crowd(self) -> bool:
        """Whether more sites upload than are read at a time, as far as can be told from the attempt before."""
        return max(self._before, len(self._streams)) > self._turns.most

    def forget_ids(self, but: Mapping[SiteName, Asking] = _NOTHING) -> None:
        """Begin a new attempt; arguments as `close_attempt`."""
        self._before = len(self._announced)
        self._announced = {
            site: key for site, key in self._announced.items() if but.get(site) == (key.round, key.attempt)
        }

    async def receive(
        self, site: SiteName, requests: AsyncIterator[Request], call: Call | None
    ) -> AsyncGenerator[pb.PushUpdateReply, None]:
        """Take one upload.

        Raises:
            UpdateRejectedError: it is not admitted.
            TransportError: it was cut or superseded; resume it.
            MalformedMessageError: it breaks the protocol.
            StorageError: there was no room for it.
        """
        header, takes_ticket = await _read_header(requests)
        announcement = self._announcement(site, header)
        stream = UploadStream(site=site, asking=asking_of(announcement), call=call, takes_ticket=takes_ticket)
        async with (
            self._streams.present(stream),
            contextlib.aclosing(self._take(stream, announcement, requests)) as replies,
        ):
            async for reply in replies:
                yield reply

    async def take(self, site: SiteName, update: pb.WholeUpdate) -> None:
        """Take one update that came whole in its site's session; returns once it is admitted, errors as `receive`."""
        with self._refusing_malformed(site, update.header):
            check_whole(update)
        async with contextlib.aclosing(self.receive(site, as_messages(update), None)) as replies:
            async for _ in replies:
                pass

    def _announcement(self, site: SiteName, header: pb.UpdateHeader) -> UpdateAnnouncement:
        with self._refusing_malformed(site, header):
            return announcement_from_proto(header)

    @contextlib.contextmanager
    def _refusing_malformed(self, site: SiteName, header: pb.UpdateHeader) -> Iterator[None]:
        """Rule 4, of an update whose header cannot be read, or that is not what the header says."""
        try:
            yield
        except MalformedMessageError as error:
            asking = (RoundNumber(header.round), Attempt(header.attempt))
            self._tell(asking, UpdateRefused(site, f"malformed: {error}"))
            raise

    async def _take(
        self, stream: UploadStream, announcement: UpdateAnnouncement, requests: AsyncIterator[Request]
    ) -> AsyncGenerator[pb.PushUpdateReply, None]:
        """Rule 4."""
        site = stream.site
        try:
            async for reply in self._receive(stream, announcement, requests):
                yield reply
        except UpdateRejectedError as error:
            await self._refuse(site, announcement, error)
            raise
        except MalformedMessageError as error:
            await self._receptions.give_up(site, announcement)
            self._tell(stream.asking, UpdateRefused(site, f"malformed: {error}"))
            raise
        except StorageError as error:
            self._tell(stream.asking, SiteFailed(site, f"{type(error).__name__} at the aggregator"))
            raise

    async def _receive(
        self,
        stream: UploadStream,
        announcement: UpdateAnnouncement,
        requests: AsyncIterator[Request],
    ) -> AsyncGenerator[pb.PushUpdateReply, None]:
        site = stream.site
        present = self._spool.find(site, announcement.round)
        if present is not None and present.is_admitted and present.key.attempt == announcement.attempt:
            yield pb.PushUpdateReply(
                holding=pb.UpdateHolding(bytes=present.held, admitted=True, admitted_update_id=present.key.update_id)
            )
            if self._is_awaited(site, stream.asking):  # an older upload was ended between its admission and this
                self._metrics.updates_admitted_total.inc()
                self._round.handle(UpdateAdmitted(site, asked_round=announcement.round))
            yield pb.PushUpdateReply(result=pb.UpdateResult(admitted=True))
            return
        self._check(site, announcement)
        if not self._streams.is_present(stream):
            raise TransportError("superseded by a newer upload of the same site")
        self._announced[site] = key_of(site, announcement)
        self._round.handle(ModelHeld(site))
        reception = await self._receptions.begin(site, announcement)
        holding = pb.UpdateHolding(bytes=reception.held, piece_bytes=CHUNK_BYTES)
        turn = Turn(self._turns, reception.missing)
        with self._ticket(stream, reception) as ticket:
            try:
                if ticket is not None:
                    holding.ticket = ticket.id
                elif not reception.is_small:
                    await turn.take()  # a sender that does not know what is held sends nothing yet
                if self._is_crowd:
                    holding.piece_bytes = CROWD_PIECE_BYTES
                yield pb.PushUpdateReply(holding=holding)
                if ticket is not None:
                    commit = await self._receptions.read_line(reception, requests, ticket)
                else:
                    if stream.call is not None:
                        self._metrics.transfers_total.labels("in", "call").inc()
                    commit = await self._receptions.read(reception, turn, requests)
            finally:
                turn.release()
        digests = await self._admit(stream, reception, commit)
        yield pb.PushUpdateReply(result=pb.UpdateResult(admitted=True, digests=digests))

    def _ticket(self, stream: UploadStream, reception: Reception) -> contextlib.AbstractContextManager[Ticket | None]:
        if stream.call is None or not stream.takes_ticket:
            return contextlib.nullcontext()
        return self._lines.issue(stream.call.peer, reception.missing)

    def _check(self, site: SiteName, announcement: UpdateAnnouncement) -> None:
        """Rule 3, first half."""
        claim = admission.Claim(
            experiment=announcement.experiment,
            epoch=announcement.epoch,
            round=announcement.round,
            attempt=announcement.attempt,
            model_digest=announcement.model_digest,
            payloads=tuple(
                (payload.name, payload.schema_digest, payload.codec, payload.encoded_bytes)
                for payload in announcement.payloads
            ),
            examples=announcement.examples,
            metrics=announcement.metrics,
        )
        expected = self._round.expectation(site)
        admission.check_task(claim, expected, is_asked=self._round.is_asked(site))
        admission.check_staleness(expected)
        admission.check_claim(claim, expected, examples_cap=self._round.examples_cap(site))

    async def _admit(self, stream: UploadStream, reception: Reception, commit: pb.UpdateCommit) -> tuple[Digest, ...]:
        """Rule 3, second half; returns the digests of what is stored."""
        site = stream.site
        digests, norm = await self._receptions.finish(reception, commit)
        admission.check_norm(norm, self._plan, self._round.norms)
        self._require_open(site, reception.announcement)
        facts = {
            "norm": norm,
            "transfer_seconds": self._clock.monotonic() - reception.began,
            "digest": hashlib.sha256(b"".join(digests)).hexdigest(),
            "arrival": next(self.arrivals),
        }
        await self._receptions.admit(reception, digests, facts)
        try:
            self._require_open(site, reception.announcement)  # it may have closed while the record was written
        except UpdateRejectedError:
            await self._on_disk(self._spool.discard, reception.update)
            raise
        self._streams.let_go(site)
        self._receptions.forget(site)
        self._metrics.updates_admitted_total.inc()
        self._round.handle(UpdateAdmitted(site, asked_round=stream.asking[0]))
        return digests

    def _is_awaited(self, site: SiteName, asking: Asking) -> bool:
        """Tell whether the task that an update answers is still the site's own, and open."""
        expected = self._round.expectation(site)
        return self._round.is_asked(site) and asking == (expected.round, expected.attempt)

    def _require_open(self, site: SiteName, announcement: UpdateAnnouncement) -> None:
        if not self._is_awaited(site, asking_of(announcement)):
            raise UpdateRejectedError(Refusal.CLOSED_ROUND, CLOSED)
        admission.check_staleness(self._round.expectation(site))

    def _tell(self, asking: Asking, event: UpdateRefused | SiteFailed) -> None:
        """Rule 6: what is wrong with an update says nothing about another task of its site."""
        if self._is_awaited(event.site, asking):
            self._round.handle(event)

    async def _refuse(self, site: SiteName, announcement: UpdateAnnouncement, error: UpdateRejectedError) -> None:
        self._metrics.updates_refused_total.labels(error.refusal.value).inc()
        if error.refusal in _ANSWERS_NO_TASK:
            self._round.handle(SiteFree(site, announcement.round, announcement.attempt))
            return
        if self._is_awaited(site, asking_of(announcement)):
            self._announced[site] = key_of(site, announcement)
        await self._receptions.give_up(site, announcement)
        self._tell(asking_of(announcement), UpdateRefused(site, f"{error.refusal.value}: {error}", error.norm))

    async def _on_disk(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)


async def _read_header(requests: AsyncIterator[Request]) -> tuple[pb.UpdateHeader, bool]:
    """Return the header, and whether its sender takes a ticket."""
    async for request in requests:
        if isinstance(request, MessagePiece) or not request.HasField("header"):
            break
        return request.header, request.takes_ticket
    raise MalformedMessageError("an upload begins with its header")
