"""Committed rounds on the wire: back as they went, or refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from federation.errors import MalformedMessageError
from federation.names import Epoch, RoundNumber, SiteName
from federation.rounds.history import QuarantinedSite, RoundRecord, SiteOutcome, SiteRecord
from federation.v1 import director_pb2
from federation.wire.reports import report_from_proto, report_to_proto

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = RoundRecord(
    round=RoundNumber(3),
    epoch=Epoch(2),
    sequence=17,
    started_at=1_800_000_000.0,
    seconds=2.5,
    phase_seconds={"broadcast": 1.0, "collect": 1.5},
    sites=(
        SiteRecord(
            site=SiteName("alpha"),
            outcome=SiteOutcome.COUNTED,
            examples=120,
            weight=1.0,
            update_norm=0.5,
            train_seconds=1.0,
            transfer_seconds=0.2,
            bytes_up=5 << 30,
            bytes_down=7,
            train_metrics={"loss": 0.4},
            metrics={"accuracy": 0.9},
            update_digest="ab" * 32,
            validation_examples=30,
            oracle_calls=640,
            peak_memory=1 << 33,
            staleness=2,
            scores={"distance": 0.25, "cosine": -0.5, "krum": 1e300},
        ),
        SiteRecord(site=SiteName("beta"), outcome=SiteOutcome.FAILED, reason="ValueError"),
    ),
    train_metrics={"loss": 0.4},
    metrics={"accuracy": 0.9},
    model_digest="cd" * 32,
    is_best=True,
    bytes_down=7,
    bytes_up=5 << 30,
    update_norm=0.5,
    simulated_seconds=1.5,
    total_sites=7,
    algorithm_scalars={"eta": 0.5, "share": 0.25},
    rule_note="the weighted mean",
    quarantined=(QuarantinedSite(site=SiteName("gamma"), since_round=RoundNumber(2), releases=1, reason="krum"),),
    unevaluated={SiteName("beta"): "still at work since round 2", SiteName("delta"): "no answer in time"},
)


def test_a_record_comes_back_as_it_went() -> None:
    message = director_pb2.RoundReport.FromString(report_to_proto(RECORD).SerializeToString())
    assert report_from_proto(message) == RECORD


def on_report(**values: object) -> Callable[[director_pb2.RoundReport], None]:
    def spoil(message: director_pb2.RoundReport) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return spoil


def on_site(**values: object) -> Callable[[director_pb2.RoundReport], None]:
    def spoil(message: director_pb2.RoundReport) -> None:
        for name, value in values.items():
            setattr(message.contributions[0], name, value)

    return spoil


def a_site_twice(message: director_pb2.RoundReport) -> None:
    message.contributions[1].site = "alpha"


def strange_phase(message: director_pb2.RoundReport) -> None:
    message.phase_seconds["<script>"] = 1.0


def infinite_scalar(message: director_pb2.RoundReport) -> None:
    message.algorithm_scalars["eta"] = math.inf


def strange_site(message: director_pb2.RoundReport) -> None:
    message.unevaluated["a/b"] = "no answer in time"


def endless_reason(message: director_pb2.RoundReport) -> None:
    message.unevaluated["beta"] = "x" * 5000


def too_many_sites(message: director_pb2.RoundReport) -> None:
    message.unevaluated.update({f"site-{number}": "no answer in time" for number in range(10_001)})


def infinite_metric(message: director_pb2.RoundReport) -> None:
    message.metrics["accuracy"] = math.inf


@pytest.mark.parametrize(
    "spoil",
    [
        on_report(round=0),
        on_report(epoch=0),
        on_report(seconds=-1.0),
        on_report(started_at=math.nan),
        on_report(update_norm=math.inf),
        on_report(simulated_seconds=-1.0),
        infinite_scalar,
        on_report(model_digest="not hex"),
        on_site(site="a/b"),
        on_site(outcome="won"),
        on_site(weight=1.5),
        on_site(weight=-0.5),
        on_site(update_digest="AB" * 32),
        on_site(reason="x" * 5000),
        a_site_twice,
        strange_phase,
        infinite_metric,
        strange_site,
        endless_reason,
        too_many_sites,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_report_that_cannot_mean_anything_is_refused(spoil: Callable[[director_pb2.RoundReport], None]) -> None:
    message = report_to_proto(RECORD)
    spoil(message)
    with pytest.raises(MalformedMessageError):
        report_from_proto(message)
