"""Round records and weighted means."""

from __future__ import annotations

import json

import pytest

from federation.names import Epoch, RoundNumber, SiteName
from federation.rounds.history import QuarantinedSite, RoundRecord, SiteOutcome, SiteRecord, weighted_mean

RECORD = RoundRecord(
    round=RoundNumber(3),
    epoch=Epoch(2),
    sequence=7,
    started_at=1.8e9,
    seconds=1.5,
    phase_seconds={"collect": 1.0},
    sites=(
        SiteRecord(site=SiteName("a"), outcome=SiteOutcome.COUNTED, examples=5, weight=1.0, scores={"krum": 1.5}),
        SiteRecord(site=SiteName("b"), outcome=SiteOutcome.REFUSED, reason="not_finite"),
    ),
    metrics={"loss": 0.25},
    model_digest="00" * 32,
    is_best=True,
    quarantined=(QuarantinedSite(site=SiteName("c"), since_round=RoundNumber(2), reason="far"),),
)


def test_a_record_survives_json():
    assert RoundRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


@pytest.mark.parametrize("broken", [{}, {"sites": [{"site": "a"}]}, {**RECORD.to_json(), "more": 1}])
def test_what_is_no_record_is_refused(broken):
    with pytest.raises(ValueError, match="not a round record"):
        RoundRecord.from_json(broken)


def test_means_are_weighted_over_the_sites_that_have_the_metric():
    rows = [(1.0, {"loss": 4.0, "accuracy": 0.5}), (3.0, {"loss": 0.0}), (0.0, {"auc": 0.75}), (0.0, {"auc": 0.25})]
    assert weighted_mean(rows) == {"accuracy": 0.5, "auc": 0.5, "loss": 1.0}
    assert weighted_mean([]) == {}
