"""What users and operators ask: list, show, watch, read logs, cancel, release.

Rules, in order:

1. A user sees and cancels his own experiments; an operator all, and he alone releases sites from quarantine. What is
   not his does not exist, as far as a user can tell.
2. Watching replays events from the caller's cursor on, then goes on as they are committed, and ends after the
   terminal one. A watcher that is slow or comes back misses nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from director import lifecycle, views
from director.logs import LogReader
from director.store import artifacts, events, experiments, rounds, sites
from federation.errors import InvalidNameError, MalformedMessageError, NotFoundError
from federation.names import ExperimentState, Identity, Role, check_name
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.orm import Session

    from director.attendance import Attendance
    from director.bulletin import Bulletin
    from director.logs import LogFolder
    from director.overseer import Overseer
    from director.store.database import Database
    from director.store.records import ExperimentRecord
    from federation.transport.calls import Call

_DEFAULT_LIST = 100
_MAX_LIST = 1000
_EVENTS_PER_PAGE = 200
_ROUNDS_PER_REPLY = 200
_CONTRIBUTIONS_PER_REPLY = 4000
"""Some 2 MiB of messages, well under what a message may have."""
_MAX_REASON = 512
_TERMINAL = frozenset(experiments.wire_state(state) for state in ExperimentState if state.is_terminal)


def may_see(identity: Identity, record: ExperimentRecord) -> bool:
    """Tell whether this caller may know of the experiment: its user, an operator, its own aggregator."""
    if identity.role is Role.OPERATOR:
        return True
    if identity.role is Role.USER:
        return record.submitted_by == identity.name
    return identity.role is Role.AGGREGATOR and record.id == identity.name


async def find_visible(database: Database, experiment: str, call: Call) -> ExperimentRecord:
    """Return an experiment the caller may see.

    Raises:
        NotFoundError: there is none, or it is not his; he cannot tell which.
    """
    record = await database.relaxed(experiments.get, experiment)
    if not may_see(call.peer.identity, record):
        raise NotFoundError(f"there is no experiment {experiment[:80]!r}; `federation list` shows yours")
    return record


class Desk:
    """Answers users and operators.

    Args:
        database: the store.
        bulletin: tells of news.
        logs: log files.
        attendance: who is online.
        overseer: who cancels.
    """

    def __init__(
        self,
        *,
        database: Database,
        bulletin: Bulletin,
        logs: LogFolder,
        attendance: Attendance,
        overseer: Overseer,
    ) -> None:
        self._database = database
        self._bulletin = bulletin
        self._logs = logs
        self._attendance = attendance
        self._overseer = overseer

    async def list(self, request: pb.ListExperimentsRequest, call: Call) -> pb.ListExperimentsReply:
        """List experiments the caller may see, newest first."""
        identity = call.peer.identity
        states = [_read_state(state) for state in request.states]
        found = await self._database.relaxed(
            experiments.find,
            user=None if identity.role is Role.OPERATOR else identity.name,
            project=request.project or None,
            states=states,
            limit=min(request.limit or _DEFAULT_LIST, _MAX_LIST),
        )
        accepted = await self._database.relaxed(sites.accepted_by_experiment, [record.id for record in found])
        return pb.ListExperimentsReply(
            experiments=[views.summary(record, accepted.get(record.id, [])) for record in found]
        )

    async def get(self, request: pb.GetExperimentRequest, call: Call) -> pb.GetExperimentReply:
        """Show one experiment, with up to a page of its rounds."""
        record = await find_visible(self._database, request.experiment, call)
        return await self._database.relaxed(_show, record, request.after_round)

    async def watch(self, request: pb.WatchExperimentRequest, call: Call) -> AsyncIterator[pb.Event]:
        """Follow an experiment's events."""
        call.is_session = True
        record = await find_visible(self._database, request.experiment, call)
        cursor = request.cursor
        over = False
        with self._bulletin.follow(record.id) as news:
            while True:
                news.clear()
                page = await self._database.relaxed(events.after, record.id, cursor, _EVENTS_PER_PAGE)
                for event in page:
                    yield event
                    cursor = event.sequence
                    if event.HasField("transition") and event.transition.state in _TERMINAL:
                        return
                if page:
                    continue
                if over:
                    return  # the cursor is beyond the terminal event
                # It may have ended since the page was read: then there is one more to read.
                over = (await self._database.relaxed(experiments.get, record.id)).state.is_terminal
                if not over:
                    await news.wait()

    async def read_logs(self, request: pb.ReadLogsRequest, call: Call) -> AsyncIterator[pb.LogLines]:
        """Stream log lines from a cursor on, and follow them if asked to."""
        call.is_session = request.follow
        record = await find_visible(self._database, request.experiment, call)
        if request.site:
            try:
                check_name(request.site, "site name")
            except InvalidNameError as error:
                raise MalformedMessageError(str(error)) from error
            if await self._database.relaxed(sites.participation, record.id, request.site) is None:
                raise NotFoundError(f"site {request.site!r} takes no part in experiment {record.id!r}")
        reader = LogReader(self._logs.path(record.id, request.site), cursor=request.cursor)
        with self._bulletin.follow(record.id) as news:
            while True:
                news.clear()
                # Asked before reading: what was written before the end is then certainly read.
                over = not request.follow or await self._is_over(record)
                async for batch in reader.read(to_end=over):
                    yield pb.LogLines(lines=batch.lines, cursor=batch.cursor)
                if over:
                    return
                await news.wait()

    async def cancel(self, request: pb.CancelExperimentRequest, call: Call) -> pb.CancelExperimentReply:
        """Cancel an experiment; repeating it is harmless."""
        record = await find_visible(self._database, request.experiment, call)
        reason = request.reason[:_MAX_REASON] or f"cancelled by {call.peer.identity.name}"
        await self._overseer.finish(record.id, ExperimentState.CANCELLED, reason, call.peer.identity.spiffe)
        return pb.CancelExperimentReply(state=pb.EXPERIMENT_STATE_CANCELLED)

    async def release(self, request: pb.ReleaseSiteRequest, call: Call) -> pb.ReleaseSiteReply:
        """Let a site out of quarantine; repeating it is harmless."""
        record = await find_visible(self._database, request.experiment, call)
        since = await self._overseer.release(
            record.id, request.site, request.reason[:_MAX_REASON], call.peer.identity.spiffe
        )
        return pb.ReleaseSiteReply(released=since > 0, quarantined_since=since)

    async def list_envoys(self, call: Call) -> pb.ListEnvoysReply:
        """List the federation's envoys, what they offer, and which of the caller's experiments hold them."""
        identity = call.peer.identity
        user = None if identity.role is Role.OPERATOR else identity.name
        return await self._database.relaxed(_list_envoys, self._attendance.online, user)

    async def _is_over(self, record: ExperimentRecord) -> bool:
        """Whether nothing more will be written: the experiment has ended and its aggregator has left."""
        found = await self._database.relaxed(experiments.get, record.id)
        return found.state.is_terminal and not self._overseer.aggregators.is_running(record.id)


def _show(session: Session, record: ExperimentRecord, after_round: int) -> pb.GetExperimentReply:
    accepted = sites.accepted_by_experiment(session, [record.id]).get(record.id, [])
    return pb.GetExperimentReply(
        summary=views.summary(record, accepted),
        plan_json=experiments.plan_json(session, record.id),
        sites=[views.participation(part) for part in sites.participations(session, record.id)],
        rounds=_page(rounds.reports(session, record.id, after_round=after_round, limit=_ROUNDS_PER_REPLY)),
        artifacts=[views.artifact(item) for item in artifacts.of(session, record.id)],
        manifest_digest=record.manifest_digest,
        signing_fingerprint=record.signing_fingerprint,
        transitions=[views.transition(item) for item in experiments.transitions(session, record.id)],
        aggregator=record.address if record.state in lifecycle.ACTIVE else "",
    )


def _page(reports: list[pb.RoundReport]) -> list[pb.RoundReport]:
    """Cut a page where it would become too large a message; at least one round is always in it."""
    kept: list[pb.RoundReport] = []
    contributions = 0
    for report in reports:
        contributions += len(report.contributions)
        if kept and contributions > _CONTRIBUTIONS_PER_REPLY:
            break
        kept.append(report)
    return kept


def _list_envoys(session: Session, online: frozenset[str], user: str | None) -> pb.ListEnvoysReply:
    running = sites.running_by_site(session, [state.value for state in lifecycle.ACTIVE])
    held = sites.quarantined_in(session, [state.value for state in lifecycle.ACTIVE], user=user)
    offered = {site.name: site.shards for site in sites.offers(session, online)}
    return pb.ListEnvoysReply(
        envoys=[
            views.envoy(
                record,
                offered.get(record.site, ()),
                online=record.site in online,
                running=running.get(record.site, 0),
                quarantined_in=held.get(record.site, ()),
            )
            for record in sites.envoys(session)
        ]
    )


def _read_state(state: pb.ExperimentState) -> ExperimentState:
    for member in ExperimentState:
        if experiments.wire_state(member) == state:
            return member
    raise MalformedMessageError(f"experiment state {state} is not one of this protocol")
