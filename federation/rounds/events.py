"""What the round machine is told, and what it answers: events in, actions out. Plain data.

The shell reports each event as it happens and performs each action in the order given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from federation.names import Attempt, RoundNumber, SiteName
from federation.rounds.quarantine import Suspicion

if TYPE_CHECKING:
    from collections.abc import Mapping

_NO_ROUND = RoundNumber(0)
_FIRST_ROUND = RoundNumber(1)
_FIRST_ATTEMPT = Attempt(1)


class Phase(Enum):
    """Where an experiment's aggregator is. `SELECT` lasts no time: it is left in the step that enters it."""

    JOINING = "joining"
    SELECT = "select"
    BROADCAST = "broadcast"
    COLLECT = "collect"
    MISSED = "missed"
    AGGREGATE = "aggregate"
    EVALUATE = "evaluate"
    COMMIT = "commit"
    PAUSED = "paused"
    ENDED = "ended"


# --- events


@dataclass(frozen=True, slots=True)
class SiteReady:
    """A site can take tasks. Said again when a newer session of it has replaced an older one.

    `at_work`: round and attempt of the train task that it is at meanwhile; None: it is at none.
    """

    site: SiteName
    at_work: tuple[RoundNumber, Attempt] | None = None


@dataclass(frozen=True, slots=True)
class SiteFree:
    """A site is done with its task of this round and attempt (None: any), whose answer is not awaited any more."""

    site: SiteName
    round: RoundNumber
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class SiteLost:
    """A site is gone and did not come back in the time the shell grants."""

    site: SiteName
    reason: str = "connection lost"


@dataclass(frozen=True, slots=True)
class ModelHeld:
    """A site that was asked to train holds the model of the round."""

    site: SiteName


@dataclass(frozen=True, slots=True)
class UpdateAdmitted:
    """A site's update is whole, admitted and in the spool; `asked_round`: of the task it answers, if rounds overlap."""

    site: SiteName
    asked_round: RoundNumber | None = None


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """A site's update was not admitted; the site is done for this attempt. `norm`: its length if that is why, or 0."""

    site: SiteName
    reason: str
    norm: float = 0.0


@dataclass(frozen=True, slots=True)
class SiteFailed:
    """A site says that it could not do its task; `permanent`: nor any later one."""

    site: SiteName
    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class SiteEvaluated:
    """A site's metrics of the candidate model over `examples` validation examples; the shell has checked both."""

    site: SiteName
    examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The timer started last has run out."""


@dataclass(frozen=True, slots=True)
class TaskOverdue:
    """A site has had the time of `AskTrain.overdue_s` for its task of this round and attempt."""

    site: SiteName
    round: RoundNumber
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class MissRecorded:
    """The journal holds the miss, and the updates of the attempt are dropped."""


@dataclass(frozen=True, slots=True)
class Combined:
    """The candidate model is written; `scores`: how each site's update lay to it, where that was measured."""

    scores: Mapping[SiteName, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    """The journal holds the round."""


@dataclass(frozen=True, slots=True)
class SiteReleased:
    """An operator let a site out of quarantine; `releases`: for the how-manieth time."""

    site: SiteName
    releases: int


Event = (
    SiteReady
    | SiteFree
    | SiteLost
    | ModelHeld
    | UpdateAdmitted
    | UpdateRefused
    | SiteFailed
    | SiteEvaluated
    | DeadlinePassed
    | TaskOverdue
    | MissRecorded
    | Combined
    | Committed
    | SiteReleased
)


# --- actions


@dataclass(frozen=True, slots=True)
class EnterPhase:
    """The phase changed: take its time and report it."""

    phase: Phase
    round: RoundNumber
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Report `DeadlinePassed` after so many seconds; replaces any timer that still runs."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StopTimer:
    """Forget the timer."""


@dataclass(frozen=True, slots=True)
class AskTrain:
    """Send each site the train task of this attempt at the round.

    Where rounds overlap and places are few, report `TaskOverdue` of each, `overdue_s` after it was first told this, and
    write down with whom it asks that the attempt has made so many `draws`; 0: none was made for this.
    """

    round: RoundNumber
    attempt: Attempt
    sites: tuple[SiteName, ...]
    overdue_s: float | None = None
    draws: int = 0


@dataclass(frozen=True, slots=True)
class Combine:
    """Aggregate these sites' updates (in name order) into a candidate model, then report `Combined`.

    Where rounds overlap, `asked` says in which round each site was asked: its update is `round` − that many steps old.
    """

    round: RoundNumber
    sites: tuple[SiteName, ...]
    asked: dict[SiteName, RoundNumber] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AskEvaluate:
    """Send each site the candidate model to evaluate."""

    round: RoundNumber
    sites: tuple[SiteName, ...]


class Progress(Enum):
    """How far an asked site has come in a round."""

    ASKED = "asked"
    ADMITTED = "admitted"
    REFUSED = "refused"
    FAILED = "failed"
    LOST = "lost"
    LATE = "late"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A site's progress in the round, and why it is no further; `norm`: of an update refused for its length."""

    progress: Progress
    reason: str = ""
    norm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What decides best model and early stopping, carried from round to round.

    Attributes:
        best: value of the plan's best metric for the best model so far; None before any.
        best_round: its round; 0 before any.
        reference: value that the next evaluation must improve on by the plan's `min_delta`.
        stale: evaluations in a row that did not.
        is_degraded: some committed round had fewer contributions than planned.
    """

    best: float | None = None
    best_round: RoundNumber = _NO_ROUND
    reference: float | None = None
    stale: int = 0
    is_degraded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Make the candidate the model: checkpoint, then journal line, then report `Committed`.

    Attributes:
        round: round to commit.
        attempt: attempt that made it.
        standings: what became of each site that was asked, in name order.
        metrics: federated evaluation; empty if there was none.
        evaluations: metrics and validation examples of each site that evaluated.
        unevaluated: of each other site that was asked to evaluate, why it has no say, in name order.
        is_best: the candidate is the best model so far.
        score: to be written with the round, and given back in `Resume` after a restart.
        suspicion: likewise.
    """

    round: RoundNumber
    attempt: Attempt
    standings: dict[SiteName, Standing]
    metrics: dict[str, float]
    evaluations: dict[SiteName, SiteEvaluated]
    is_best: bool
    score: Score
    suspicion: Suspicion = field(default_factory=Suspicion)
    unevaluated: dict[SiteName, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SendVerdicts:
    """Tell each site that sent an update in this attempt whether it counted: the reason why not, empty if it did.

    Where rounds overlap, `asked` says for each site which task it answered.
    """

    round: RoundNumber
    attempt: Attempt
    reasons: dict[SiteName, str]
    asked: dict[SiteName, tuple[RoundNumber, Attempt]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordMiss:
    """Write down that the attempt missed its quorum, drop its updates, then report `MissRecorded`.

    `standings`: of each site that was asked in this round, what became of it so far; empty where rounds overlap.
    """

    round: RoundNumber
    attempt: Attempt
    reason: str
    standings: dict[SiteName, Standing] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordRelease:
    """Write down that a site was released from quarantine; `drawn`: round and attempt that were drawn without it."""

    site: SiteName
    releases: int
    drawn: tuple[RoundNumber, Attempt] | None = None


@dataclass(frozen=True, slots=True)
class RecordPresent:
    """Write down which sites are there, in name order, before any site is told what is asked next.

    `drawn`: round and attempt that were drawn already, from those that were there before; None: the next draw is made
    from these.
    """

    sites: tuple[SiteName, ...]
    drawn: tuple[RoundNumber, Attempt] | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The experiment is over: `outcome` is ``"completed"`` or ``"failed"``."""

    outcome: str
    reason: str
    is_degraded: bool


Action = (
    EnterPhase
    | StartTimer
    | StopTimer
    | AskTrain
    | Combine
    | AskEvaluate
    | Commit
    | SendVerdicts
    | RecordMiss
    | RecordRelease
    | RecordPresent
    | Finish
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where a restarted aggregator goes on.

    Attributes:
        round: round in progress: one after the last committed one.
        attempt: attempt in progress: one after the last missed one of this round.
        admitted: sites whose updates for this attempt are in the spool; they are not asked again.
        expected: sites that were there, waited for a little while; empty at a first start.
        pool: sites that the attempt in progress was, or would have been, drawn from; empty: not known, or no rounds.
        standings: as the last miss of this round wrote them.
        score: as the last commit wrote it.
        suspicion: as the last commit wrote it, and the releases since.
        asked: where rounds overlap: the task that each admitted update answers, and those of the sites in `training`.
        training: where rounds overlap: sites whose answers to older tasks still come; they are told their tasks again.
        knows_tasks: sites in `training` know what they work on, and are not told again when they are first ready.
        overdue: those in `training` that hold no place any more.
        draws: where rounds overlap: draws that this attempt has made.
    """

    round: RoundNumber = _FIRST_ROUND
    attempt: Attempt = _FIRST_ATTEMPT
    admitted: tuple[SiteName, ...] = ()
    expected: tuple[SiteName, ...] = ()
    pool: tuple[SiteName, ...] = ()
    standings: dict[SiteName, Standing] = field(default_factory=dict)
    score: Score = field(default_factory=Score)
    suspicion: Suspicion = field(default_factory=Suspicion)
    asked: dict[SiteName, tuple[RoundNumber, Attempt]] = field(default_factory=dict)
    training: tuple[SiteName, ...] = ()
    knows_tasks: bool = False
    overdue: tuple[SiteName, ...] = ()
    draws: int = 0
