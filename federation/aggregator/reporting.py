"""What people get to see of a running experiment: events and status for the director, and the process's metrics.

A round that is over within `QUIET_S` is told of by its report alone: progress that nobody could read would only cost
the director a transaction per message. A longer one says where it is once that time has passed, and all from then on.
What went wrong is always told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.rounds import events
from federation.rounds.history import SiteOutcome
from federation.telemetry.logs import get_logger
from federation.v1 import director_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import Gauge

    from federation.aggregator.sessions import Sessions
    from federation.aggregator.supervision import Supervision
    from federation.rounds.asynchronous import Machine
    from federation.rounds.history import RoundRecord
    from federation.runtime.clock import Cancellable, Clock
    from federation.telemetry.metrics import Metrics

QUIET_S = 0.5
_MAX_TEXT = 500
_ALWAYS = frozenset({events.Phase.PAUSED, events.Phase.MISSED, events.Phase.ENDED})


class Reporter:
    """Tells what happens.

    Args:
        supervision: whom to tell.
        sessions: which sites are here.
        metrics: where to show it.
        clock: tells long rounds from short ones.
    """

    def __init__(self, supervision: Supervision, sessions: Sessions, metrics: Metrics, clock: Clock) -> None:
        self._supervision = supervision
        self._sessions = sessions
        self._metrics = metrics
        self._clock = clock
        self._log = get_logger(__name__)
        self._pause_reason = ""
        self._quiet: Cancellable | None = None
        self._scored: set[tuple[str, ...]] = set()
        self._normed: set[tuple[str, ...]] = set()
        # Read when somebody looks: a site is counted once, whatever it did since it was last told of.
        metrics.sites.labels("ready").set_function(lambda: len(sessions.ready))
        metrics.sites.labels("joining").set_function(lambda: sessions.connected - len(sessions.ready))

    def close(self) -> None:
        """Forget the timer."""
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None

    def entered(self, action: events.EnterPhase, machine: Machine) -> None:
        """Tell that a phase began."""
        self._metrics.round_number.set(action.round)
        self._metrics.sites_quarantined.set(len(machine.suspicion.held))
        was_paused = bool(self._pause_reason)
        self._pause_reason = action.reason if action.phase is events.Phase.PAUSED else ""
        if was_paused or self._pause_reason:
            self.status()
        if action.phase is events.Phase.SELECT:
            self.close()
            self._quiet = self._clock.timer(QUIET_S, lambda: self._speak(machine))
        if self._quiet is None or action.phase in _ALWAYS:
            self._phase(action.phase, action.reason, machine)

    def _speak(self, machine: Machine) -> None:
        """Tell where a round is that turned out to be a long one, and be quiet no more."""
        self._quiet = None
        self._phase(machine.phase, "", machine)

    def _phase(self, phase: events.Phase, reason: str, machine: Machine) -> None:
        text = f"round {machine.round}: {phase.value}" + (f", {reason}" if reason else "")
        self._supervision.event(
            director_pb2.Event(kind="phase", text=text[:_MAX_TEXT], phase=_progress(machine, phase))
        )

    def happened(self, event: events.Event, machine: Machine) -> None:
        """Tell what a site did."""
        if isinstance(event, events.SiteReady):
            self._site(event.site, "ready")
        elif isinstance(event, events.SiteLost):
            self._site(event.site, event.reason)
        elif isinstance(event, events.SiteFailed):
            self._log.warning("site failed", site=event.site, round=machine.round, reason=event.reason)
            self._site(event.site, f"failed: {event.reason}")
        elif isinstance(event, events.UpdateAdmitted) and self._quiet is None:
            self._update(event.site, "update admitted", machine)
        elif isinstance(event, events.UpdateRefused):
            self._log.warning("update refused", site=event.site, round=machine.round, reason=event.reason)
            self._update(event.site, f"update refused: {event.reason}", machine)

    def status(self) -> None:
        """Tell how the experiment goes."""
        self._supervision.status(
            is_paused=bool(self._pause_reason), reason=self._pause_reason, sites=self._sessions.ready
        )

    def committed(self, record: RoundRecord) -> None:
        """Tell the director of a committed round."""
        self._supervision.committed(record)

    def show(self, record: RoundRecord) -> None:
        """Put a committed round into metrics and log."""
        self._metrics.rounds_committed_total.inc()
        for name, value in record.train_metrics.items():
            self._metrics.set_train_metric(name, value)
        for name, value in record.metrics.items():
            self._metrics.set_evaluation_metric(name, value)
        for row in record.sites:
            for name, value in row.train_metrics.items():
                self._metrics.set_train_metric(name, value, row.site)
            for name, value in row.metrics.items():
                self._metrics.set_evaluation_metric(name, value, row.site)
        counted = [row for row in record.sites if row.outcome is SiteOutcome.COUNTED]
        scores: dict[tuple[str, ...], float] = {
            (name, row.site): value for row in counted for name, value in row.scores.items()
        }
        self._scored = _show_only(self._metrics.update_score, scores, self._scored)
        norms: dict[tuple[str, ...], float] = {(row.site,): row.update_norm for row in counted}
        self._normed = _show_only(self._metrics.update_norm, norms, self._normed)
        self._log.info(
            "round committed",
            round=record.round,
            seconds=round(record.seconds, 3),
            counted=[row.site for row in counted],
        )
        for held in record.quarantined:
            if held.since_round == record.round:
                self._log.warning("site quarantined", site=held.site, round=record.round, reason=held.reason)

    def released(self, action: events.RecordRelease, machine: Machine) -> None:
        """Tell that a site was let out of quarantine."""
        self._log.warning("site released", site=action.site, releases=action.releases)
        self._audit(action.site, f"{action.site} is out of quarantine: the aggregator asks it again")
        self._metrics.sites_quarantined.set(len(machine.suspicion.held))

    def _audit(self, site: str, text: str) -> None:
        self._supervision.event(director_pb2.Event(kind="audit", site=site, text=text[:_MAX_TEXT]))

    def _site(self, site: str, text: str) -> None:
        self._supervision.event(director_pb2.Event(kind="site", site=site, text=text[:_MAX_TEXT]))
        self.status()

    def _update(self, site: str, text: str, machine: Machine) -> None:
        self._supervision.event(
            director_pb2.Event(kind="update", site=site, text=text[:_MAX_TEXT], phase=_progress(machine, machine.phase))
        )


def _show_only(
    gauge: Gauge, values: Mapping[tuple[str, ...], float], shown: set[tuple[str, ...]]
) -> set[tuple[str, ...]]:
    """Show what sites that counted in the round had, and no longer that of others; return the labels shown now.

    An alert would go on for a site that is not asked any more, and a median over sites would mix rounds.
    """
    for labels in shown - values.keys():
        gauge.remove(*labels)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
    return set(values)


def _progress(machine: Machine, phase: events.Phase) -> director_pb2.PhaseChange:
    return director_pb2.PhaseChange(
        round=machine.round, phase=phase.value, sites_asked=len(machine.asked), sites_done=machine.done
    )
