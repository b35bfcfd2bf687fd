"""What is under way between two rounds of a simulation: who trains from which version, what comes when.

Between two synchronous rounds those are at work who were late, on what counts no more. With this a run that was stopped
goes on as if it had not been: the same answers come at the same simulated times, and what waits in the buffer waits in
the same order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from federation.names import Attempt, PayloadName, RoundNumber, SiteName
from federation.rounds import events
from federation.training.results import Trained

if TYPE_CHECKING:
    from collections.abc import Mapping

_EVENTS = {"admitted": events.UpdateAdmitted, "refused": events.UpdateRefused, "failed": events.SiteFailed,
           "lost": events.SiteLost, "free": events.SiteFree}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """One site's task.

    Attributes:
        site: whose.
        round: round of the task.
        attempt: attempt of the task.
        at: simulated time at which its end shows; None if its update waits in the buffer.
        event: what shows then.
        back: round before which a site that will be lost is ready again; 0 if it will not be.
        trained: what training gave; None if it gave no update.
        norm: L2 norm of its change.
        has_pending: the site's state waits for the verdict.
        is_overdue: it holds no place among those that train at once any more.
        overdue_at: simulated time from which it will hold none; None if it holds none now, or ends before.
        payloads: its update, as encoded.
        begins: simulated time at which the site begins it; None if it has.
    """

    site: SiteName
    round: RoundNumber
    attempt: Attempt
    at: float | None
    event: events.Event | None
    back: int = 0
    trained: Trained | None = None
    norm: float = 0.0
    has_pending: bool = False
    is_overdue: bool = False
    overdue_at: float | None = None
    payloads: Mapping[PayloadName, bytes] = field(default_factory=dict)
    begins: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """Everything that is.

    Attributes:
        flights: those that train, in name order, then those that wait, in the order of their arrival.
        versions: older models that an update still has to be rebased from, by the round of its task.
    """

    flights: tuple[Flight, ...] = ()
    versions: Mapping[RoundNumber, bytes] = field(default_factory=dict)

    @property
    def waiting(self) -> tuple[SiteName, ...]:
        """Sites whose updates wait, in the order of their arrival."""
        return tuple(flight.site for flight in self.flights if flight.at is None)

    @property
    def training(self) -> tuple[SiteName, ...]:
        """Sites that train, in name order."""
        return tuple(flight.site for flight in self.flights if flight.at is not None)

    @property
    def overdue(self) -> tuple[SiteName, ...]:
        """Those of them that hold no place any more, in name order."""
        return tuple(flight.site for flight in self.flights if flight.is_overdue)

    @property
    def asked(self) -> dict[SiteName, tuple[RoundNumber, Attempt]]:
        """The task of each."""
        return {flight.site: (flight.round, flight.attempt) for flight in self.flights}

    @property
    def pending(self) -> tuple[SiteName, ...]:
        """Sites whose state waits for a verdict."""
        return tuple(flight.site for flight in self.flights if flight.has_pending)

    def pack(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return it as a JSON object, and the bytes that go into a file one after another."""
        blocks: list[bytes] = []
        versions = {}
        for number, model in self.versions.items():
            versions[str(number)] = len(model)
            blocks.append(model)
        flights = []
        for flight in self.flights:
            flights.append(_to_json(flight))
            blocks.extend(flight.payloads.values())
        return {"versions": versions, "flights": flights}, blocks

    @classmethod
    def unpack(cls, document: dict[str, Any], data: bytes) -> UnderWay:
        """Read it back.

        Raises:
            KeyError, TypeError, ValueError: document and data are not those of `pack`.
        """
        reader = _Reader(data)
        versions = {RoundNumber(int(number)): reader.take(size) for number, size in document["versions"].items()}
        flights = tuple(_from_json(row, reader) for row in document["flights"])
        if reader.position != len(data):
            raise ValueError(f"{len(data) - reader.position} bytes of what is under way belong to nothing")
        return cls(flights=flights, versions=versions)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        piece = self._data[self.position : self.position + size]
        if len(piece) != size:
            raise ValueError(f"{len(piece)} bytes are left of what is under way, {size} were expected")
        self.position += size
        return piece


def _to_json(flight: Flight) -> dict[str, Any]:
    row: dict[str, Any] = {
        "site": flight.site,
        "round": flight.round,
        "attempt": flight.attempt,
        "at": flight.at,
        "back": flight.back,
        "norm": flight.norm,
        "has_pending": flight.has_pending,
        "is_overdue": flight.is_overdue,
        "overdue_at": flight.overdue_at,
        "begins": flight.begins,
        "trained": None if flight.trained is None else asdict(flight.trained),
        "payloads": {name: len(data) for name, data in flight.payloads.items()},
    }
    if flight.event is not None:
        kind = next(kind for kind, each in _EVENTS.items() if isinstance(flight.event, each))
        row["event"] = [kind, {**asdict(flight.event)}]
    return row


def _from_json(row: dict[str, Any], reader: _Reader) -> Flight:
    event = None
    if "event" in row:
        kind, fields = row["event"]
        event = _EVENTS[kind](**fields)
    return Flight(
        site=SiteName(row["site"]),
        round=RoundNumber(int(row["round"])),
        attempt=Attempt(int(row["attempt"])),
        at=None if row["at"] is None else float(row["at"]),
        event=event,
        back=int(row["back"]),
        norm=float(row["norm"]),
        has_pending=bool(row["has_pending"]),
        is_overdue=bool(row.get("is_overdue", False)),
        overdue_at=None if row.get("overdue_at") is None else float(row["overdue_at"]),
        begins=None if row.get("begins") is None else float(row["begins"]),
        trained=None if row["trained"] is None else Trained(**row["trained"]),
        payloads={PayloadName(name): reader.take(size) for name, size in row["payloads"].items()},
    )
