"""What a simulated round took and what each site did in it, made into the record that a federated round leaves.

Bytes are payload bytes, as over the wire: a site that holds a payload already, by digest, is not sent it again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.names import Epoch
from federation.rounds.history import RoundRecord, SiteRecord
from federation.rounds.outcomes import MAX_REASON, OUTCOMES, TIMED
from federation.rounds.scoring import combined
from federation.training.exchange import MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import Attempt, PayloadName, RoundNumber, SiteName
    from federation.rounds.events import Commit, Phase, Standing
    from federation.simulation.candidates import Candidate, StepSize
    from federation.training.work import Trained

_EPOCH = Epoch(1)
"""A simulation has one server, which is never succeeded."""


@dataclass(frozen=True, slots=True)
class Update:
    """An update that is in its slot: whose, of which asking, what training gave, and the norm of its change."""

    site: SiteName
    round: RoundNumber
    attempt: Attempt
    slot: int
    trained: Trained
    norm: float
    has_pending: bool


class RoundBook:
    """Times and bytes of the round in progress, over all its attempts; what sites hold, over all rounds.

    Args:
        byzantine: f of the plan, which says how training metrics of the sites become one.

    Attributes:
        held: digest of each payload that a site holds, by site; what is in it is replaced, never written into.
    """

    def __init__(self, *, byzantine: int = 0) -> None:
        self._byzantine = byzantine
        self.held: dict[SiteName, dict[PayloadName, bytes]] = {}
        self._phase: Phase | None = None
        self._entered = 0.0
        self._page = Page(byzantine)

    def close(self) -> Page:
        """End the round, return what was noted of it, and begin the next."""
        self.enter(self._phase)
        page, self._page = self._page, Page(self._byzantine)
        page.ended = self._page.started
        return page

    def enter(self, phase: Phase | None) -> None:
        """Note that a phase begins, and so the one before ends."""
        now = time.perf_counter()
        if self._phase in TIMED:
            self._page.seconds[self._phase.value] += now - self._entered
        self._phase, self._entered = phase, now

    def send(
        self, site: SiteName, payloads: Mapping[PayloadName, tuple[bytes, int]], step: StepSize | None = None
    ) -> int:
        """Note that a site is sent payloads; returns the bytes it lacks of them.

        Args:
            site: which.
            payloads: by name their digest and size.
            step: what a site that holds the model before is sent instead of the model.
        """
        held = self.held.get(site, {})
        sent = 0
        for name, (digest, nbytes) in payloads.items():
            if held.get(name) != digest:
                is_step = step is not None and name == MODEL and held.get(name) == step.from_digest
                sent += step.nbytes if step is not None and is_step else nbytes
        self.held[site] = {**held, **{name: digest for name, (digest, _) in payloads.items()}}
        self._page.down[site] += sent
        return sent


class Page:
    """Times and bytes of one round. Once it is closed its record can be made at any time."""

    def __init__(self, byzantine: int) -> None:
        self._byzantine = byzantine
        self.started_at = time.time()
        self.started = self.ended = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.down: defaultdict[SiteName, int] = defaultdict(int)

    def record(
        self,
        commit: Commit,
        candidate: Candidate,
        updates: Mapping[SiteName, Update],
        *,
        simulated_seconds: float,
        total_sites: int,
    ) -> RoundRecord:
        """Return the record of the round.

        Args:
            commit: what the round machine decided.
            candidate: the model.
            updates: what it is made of, in name order.
            simulated_seconds: what the round took, by the time model.
            total_sites: N.
        """
        whole = sum(candidate.weights)
        scores = dict(candidate.scores)
        shares = {site: weight / whole for site, weight in zip(updates, candidate.weights, strict=True)}
        sites = [
            self._site(site, standing, updates.get(site), shares.get(site, 0.0), scores.get(site, {}), commit)
            for site, standing in commit.standings.items()
        ]
        trained = [update.trained for update in updates.values()]
        return RoundRecord(
            round=commit.round,
            epoch=_EPOCH,
            started_at=self.started_at,
            seconds=self.ended - self.started,
            phase_seconds=dict(self.seconds),
            sites=tuple(sites),
            train_metrics=combined([(row.examples, row.metrics) for row in trained], byzantine=self._byzantine),
            metrics=commit.metrics,
            model_digest=candidate.digest.hex(),
            is_best=commit.is_best,
            bytes_down=sum(self.down.values()),
            bytes_up=sum(row.bytes_up for row in sites),
            update_norm=candidate.update_norm,
            simulated_seconds=simulated_seconds,
            total_sites=total_sites,
            quarantined=commit.suspicion.held,
            rule_note=candidate.report.note[:MAX_REASON] if candidate.report else "",
            unevaluated={site: reason[:MAX_REASON] for site, reason in commit.unevaluated.items()},
        )

    def _site(
        self,
        site: SiteName,
        standing: Standing,
        update: Update | None,
        share: float,
        scores: Mapping[str, float],
        commit: Commit,
    ) -> SiteRecord:
        evaluated = commit.evaluations.get(site)
        trained = None if update is None else update.trained
        return SiteRecord(
            site=site,
            outcome=OUTCOMES[standing.progress],
            reason=standing.reason[:MAX_REASON],
            examples=trained.examples if trained else 0,
            weight=share,
            update_norm=update.norm if update else standing.norm,
            train_seconds=trained.seconds if trained else 0.0,
            bytes_up=sum(trained.payload_bytes.values()) if trained else 0,
            bytes_down=self.down.get(site, 0),
            train_metrics=dict(trained.metrics) if trained else {},
            metrics=evaluated.metrics if evaluated else {},
            validation_examples=evaluated.examples if evaluated else 0,
            oracle_calls=trained.oracle_calls if trained else 0,
            peak_memory=trained.peak_memory if trained else 0,
            staleness=max(commit.round - update.round, 0) if update else 0,
            scores=dict(scores),
        )
