"""What the metrics of an aggregator say of its sites."""

from __future__ import annotations

from types import SimpleNamespace

from federation.aggregator.reporting import Reporter
from federation.aggregator.sessions import Bounds, Sessions
from federation.names import Epoch, RoundNumber, SiteName
from federation.rounds.events import Phase, SiteFailed, UpdateRefused
from federation.rounds.history import RoundRecord, SiteOutcome, SiteRecord
from federation.telemetry.metrics import Metrics
from federation.testing.clock import FakeClock

BOUNDS = Bounds(train_examples=100, validation_examples=50)
STATES = ("joining", "ready")


async def test_a_site_is_counted_as_joining_or_as_ready_never_as_both():
    clock, metrics, sites = FakeClock(), Metrics(), (SiteName("a"), SiteName("b"))
    sessions = Sessions(clock, 10.0, lambda _: None)
    sessions.set_roster({site: BOUNDS for site in sites})
    Reporter(SimpleNamespace(), sessions, metrics, clock)

    def shown():
        return tuple(metrics.registry.get_sample_value("federation_sites", {"state": state}) for state in STATES)

    assert shown() == (0, 0)
    first, _ = [await sessions.open(site, SimpleNamespace(end=lambda _: None)) for site in sites]
    assert shown() == (2, 0)
    sessions.set_ready(first, train_examples=1, validation_examples=1)
    assert shown() == (1, 1)


async def test_a_site_that_did_not_count_keeps_no_score_and_no_norm():
    clock, metrics = FakeClock(), Metrics()
    supervision = SimpleNamespace(committed=lambda _: None)
    reporter = Reporter(supervision, Sessions(clock, 10.0, lambda _: None), metrics, clock)

    def commit(**distances):
        sites = [
            SiteRecord(
                site=site,
                outcome=SiteOutcome.REFUSED if far is None else SiteOutcome.COUNTED,
                update_norm=9e9 if far is None else far + 1,
                scores={} if far is None else {"distance": far},
            )
            for site, far in distances.items()
        ]
        reporter.show(
            RoundRecord(
                round=RoundNumber(1), epoch=Epoch(1), started_at=0, seconds=1, model_digest="", sites=tuple(sites)
            )
        )
        value = metrics.registry.get_sample_value
        shown = [value("federation_update_score", {"score": "distance", "site": site}) for site in "abc"]
        norms = [value("federation_update_norm", {"site": site}) for site in "abc"]
        assert norms == [None if far is None else far + 1 for far in shown]
        return shown

    assert commit(a=1.0, b=2.0, c=90.0) == [1.0, 2.0, 90.0]
    assert commit(a=1.5, b=None) == [1.5, None, None], "refused, and not asked"
    assert commit(a=1.0, c=3.0) == [1.0, None, 3.0]


def test_who_was_refused_or_failed_is_in_the_log_with_site_and_round(caplog):
    clock = FakeClock()
    supervision = SimpleNamespace(event=lambda _: None, status=lambda **_: None)
    reporter = Reporter(supervision, Sessions(clock, 10.0, lambda _: None), Metrics(), clock)
    machine = SimpleNamespace(round=3, phase=Phase.COLLECT, asked=(), done=0)
    reporter.happened(UpdateRefused(SiteName("a"), "norm: too long"), machine)
    reporter.happened(SiteFailed(SiteName("b"), "ValueError"), machine)
    said = [(line.msg["event"], line.msg["site"], line.msg["round"], line.msg["reason"]) for line in caplog.records]
    assert said == [("update refused", "a", 3, "norm: too long"), ("site failed", "b", 3, "ValueError")]
