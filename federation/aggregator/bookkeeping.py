"""What a round took and what each site did in it: kept while it runs, made into its record at the end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from federation.rounds.history import RoundRecord, SiteRecord
from federation.rounds.outcomes import MAX_REASON, OUTCOMES, TIMED
from federation.rounds.scoring import combined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from federation.aggregator.admitted import AdmittedUpdate
    from federation.aggregator.candidates import Candidate
    from federation.names import Epoch, SiteName
    from federation.rounds.events import Commit, Phase, Standing
    from federation.runtime.clock import Clock
    from federation.telemetry.metrics import Metrics


class RoundBook:
    """Times and bytes of the round in progress, over all its attempts.

    Args:
        clock: where time comes from.
        metrics: gets the phase times.
        byzantine: f of the plan, which says how training metrics of the sites become one.
    """

    def __init__(self, clock: Clock, metrics: Metrics, *, byzantine: int = 0) -> None:
        self._byzantine = byzantine
        self._clock = clock
        self._metrics = metrics
        self._phase: Phase | None = None
        self._entered = 0.0
        self.begin()  # of the first round again when its first phase is entered, once sites have joined

    def begin(self) -> None:
        """Begin a round."""
        self._started_at = self._clock.now()
        self._started = self._clock.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._down: defaultdict[SiteName, int] = defaultdict(int)

    def enter(self, phase: Phase) -> None:
        """Note that a phase begins, and so the one before ends."""
        if self._phase is None:
            self.begin()
        now = self._clock.monotonic()
        if self._phase in TIMED:
            self._seconds[self._phase.value] += now - self._entered
            self._metrics.round_phase_seconds.labels(self._phase.value).observe(now - self._entered)
        self._phase, self._entered = phase, now

    def sent(self, site: SiteName, payload: str, nbytes: int) -> None:
        """Note payload bytes sent to a site."""
        self._down[site] += nbytes
        self._metrics.payload_bytes_total.labels("out", payload).inc(nbytes)

    def record(
        self,
        commit: Commit,
        candidate: Candidate,
        updates: Sequence[AdmittedUpdate],
        epoch: Epoch,
    ) -> RoundRecord:
        """Return the record of the round that is about to be committed.

        Args:
            commit: what the round machine decided.
            candidate: the model.
            updates: what it is made of, in name order.
            epoch: of this process.
        """
        now = self._clock.monotonic()
        seconds = dict(self._seconds)
        if self._phase in TIMED:
            seconds[self._phase.value] = seconds.get(self._phase.value, 0.0) + now - self._entered
        whole = sum(candidate.weights)
        shares = {update.site: weight / whole for update, weight in zip(updates, candidate.weights, strict=True)}
        admitted = {update.site: update for update in updates}
        sites = [
            self._site(
                site, standing, admitted.get(site), shares.get(site, 0.0), candidate.scores.get(site, {}), commit
            )
            for site, standing in commit.standings.items()
        ]
        said = [(row.announcement.examples, row.announcement.metrics) for row in updates]
        return RoundRecord(
            round=commit.round,
            epoch=epoch,
            started_at=self._started_at,
            seconds=now - self._started,
            phase_seconds=seconds,
            sites=tuple(sites),
            train_metrics=combined(said, byzantine=self._byzantine),
            metrics=commit.metrics,
            model_digest=candidate.digest.hex(),
            is_best=commit.is_best,
            bytes_down=sum(self._down.values()),
            bytes_up=sum(row.bytes_up for row in sites),
            update_norm=candidate.update_norm,
            total_sites=candidate.total_sites,
            quarantined=commit.suspicion.held,
            rule_note=candidate.report.note[:MAX_REASON] if candidate.report else "",
            algorithm_scalars=dict(candidate.scalars),
            unevaluated={site: reason[:MAX_REASON] for site, reason in commit.unevaluated.items()},
        )

    def _site(
        self,
        site: SiteName,
        standing: Standing,
        update: AdmittedUpdate | None,
        share: float,
        scores: Mapping[str, float],
        commit: Commit,
    ) -> SiteRecord:
        evaluated = commit.evaluations.get(site)
        row = SiteRecord(
            site=site,
            outcome=OUTCOMES[standing.progress],
            reason=standing.reason[:MAX_REASON],
            update_norm=standing.norm,
            bytes_down=self._down.get(site, 0),
            metrics=evaluated.metrics if evaluated else {},
            validation_examples=evaluated.examples if evaluated else 0,
        )
        if update is None:
            return row
        said = update.announcement
        return replace(
            row,
            examples=said.examples,
            weight=share,
            scores=dict(scores),
            update_norm=update.norm,
            train_seconds=said.train_seconds,
            transfer_seconds=update.transfer_seconds,
            bytes_up=sum(payload.nbytes for payload in update.payloads.values()),
            train_metrics=dict(said.metrics),
            update_digest=update.digest,
            oracle_calls=said.oracle_calls,
            peak_memory=said.peak_memory,
            staleness=max(commit.round - said.round, 0),
        )
