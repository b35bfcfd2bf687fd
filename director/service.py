"""The Director service: which roles may call which method, and who of the director answers it.

Nothing is decided here but the table of roles; `federation.transport` applies it before any message is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.names import Role
from federation.v1 import director_pb2 as pb
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from google.protobuf.descriptor import ServiceDescriptor

    from director.attendance import Attendance
    from director.desk import Desk
    from director.enrolment import Enrolment
    from director.exchange import Exchange
    from director.intake import Intake
    from director.supervision import Supervision
    from federation.names import FederationName
    from federation.runtime.clock import Clock
    from federation.transport.calls import Call

DESCRIPTOR: ServiceDescriptor = pb.DESCRIPTOR.services_by_name["Director"]

_PEOPLE = frozenset({Role.USER, Role.OPERATOR})
_ROLES: Mapping[str, frozenset[Role]] = {
    "Submit": frozenset({Role.USER}),
    "ListExperiments": _PEOPLE,
    "GetExperiment": _PEOPLE,
    "WatchExperiment": _PEOPLE,
    "CancelExperiment": _PEOPLE,
    "ReleaseSite": frozenset({Role.OPERATOR}),
    "ReadLogs": _PEOPLE,
    "DownloadArtifact": _PEOPLE | {Role.AGGREGATOR},
    "ListEnvoys": _PEOPLE,
    "Describe": frozenset(Role),
    "Attend": frozenset({Role.ENVOY}),
    "FetchBundle": frozenset({Role.ENVOY}),
    "Supervise": frozenset({Role.AGGREGATOR}),
    "UploadArtifact": frozenset({Role.AGGREGATOR}),
    "Enrol": frozenset({Role.JOINER}),
    "Renew": frozenset({Role.ENVOY, Role.USER, Role.OPERATOR, Role.AGGREGATOR}),
}


def rules() -> dict[str, frozenset[Role]]:
    """Return the roles that may call each method, by its full name."""
    return {f"/{DESCRIPTOR.full_name}/{method}": roles for method, roles in _ROLES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectorService:
    """The service; methods are named as in the proto.

    Streams hand out their generator itself, so that it is closed when the call ends and not when it is collected.

    Attributes:
        federation: this federation.
        clock: for `Describe`.
        certificate_expires_at: end of the director's own certificate, Unix seconds, as of now.
        intake: takes submissions.
        desk: answers people.
        exchange: moves files.
        attendance: holds envoys' sessions.
        supervision: holds aggregators' sessions.
        enrolment: issues certificates.
    """

    federation: FederationName
    clock: Clock
    certificate_expires_at: Callable[[], float]
    intake: Intake
    desk: Desk
    exchange: Exchange
    attendance: Attendance
    supervision: Supervision
    enrolment: Enrolment

    async def Submit(self, requests: AsyncIterator[pb.SubmitRequest], call: Call) -> pb.SubmitReply:
        """Take an experiment in."""
        return await self.intake.submit(requests, call)

    async def ListExperiments(self, request: pb.ListExperimentsRequest, call: Call) -> pb.ListExperimentsReply:
        """List experiments the caller may see."""
        return await self.desk.list(request, call)

    async def GetExperiment(self, request: pb.GetExperimentRequest, call: Call) -> pb.GetExperimentReply:
        """Show one experiment."""
        return await self.desk.get(request, call)

    def WatchExperiment(self, request: pb.WatchExperimentRequest, call: Call) -> AsyncIterator[pb.Event]:
        """Follow an experiment's events."""
        return self.desk.watch(request, call)

    async def CancelExperiment(self, request: pb.CancelExperimentRequest, call: Call) -> pb.CancelExperimentReply:
        """Cancel an experiment."""
        return await self.desk.cancel(request, call)

    async def ReleaseSite(self, request: pb.ReleaseSiteRequest, call: Call) -> pb.ReleaseSiteReply:
        """Let a site out of quarantine."""
        return await self.desk.release(request, call)

    def ReadLogs(self, request: pb.ReadLogsRequest, call: Call) -> AsyncIterator[pb.LogLines]:
        """Stream log lines."""
        return self.desk.read_logs(request, call)

    def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, call: Call
    ) -> AsyncIterator[pb.DownloadArtifactReply]:
        """Stream an artifact."""
        return self.exchange.download(request, call)

    async def ListEnvoys(self, request: pb.ListEnvoysRequest, call: Call) -> pb.ListEnvoysReply:
        """List envoys."""
        return await self.desk.list_envoys(call)

    async def Describe(self, request: pb.DescribeRequest, call: Call) -> pb.DescribeReply:
        """Say who answers, and who asked."""
        return pb.DescribeReply(
            protocol=range_to_proto(),
            federation=self.federation,
            now=self.clock.now(),
            caller=call.peer.identity.spiffe,
            certificate_expires_at=self.certificate_expires_at(),
            caller_expires_at=call.peer.expires_at,
        )

    def Attend(self, requests: AsyncIterator[pb.AttendRequest], call: Call) -> AsyncIterator[pb.AttendReply]:
        """Hold an envoy's session."""
        return self.attendance.serve(requests, call)

    def FetchBundle(self, request: pb.FetchBundleRequest, call: Call) -> AsyncIterator[pb.FetchBundleReply]:
        """Stream a bundle to an assigned envoy."""
        return self.exchange.fetch_bundle(request, call)

    def Supervise(self, requests: AsyncIterator[pb.SuperviseRequest], call: Call) -> AsyncIterator[pb.SuperviseReply]:
        """Hold an aggregator's session."""
        return self.supervision.serve(requests, call)

    async def UploadArtifact(
        self, requests: AsyncIterator[pb.UploadArtifactRequest], call: Call
    ) -> pb.UploadArtifactReply:
        """Store an artifact."""
        return await self.exchange.upload(requests, call)

    async def Enrol(self, request: pb.EnrolRequest, call: Call) -> pb.EnrolReply:
        """Make an envoy of a joiner."""
        return await self.enrolment.enrol(request, call)

    async def Renew(self, request: pb.RenewRequest, call: Call) -> pb.RenewReply:
        """Renew the caller's certificate."""
        return await self.enrolment.renew(request, call)
