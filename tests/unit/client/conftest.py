"""A made-up experiment as the director tells it, with names and texts a hostile peer might choose."""

from __future__ import annotations

import pytest

from federation.v1 import director_pb2 as pb

HOSTILE = '<script>alert("x")</script>[/red] & \x1b[2J'


def contribution(site: str, outcome: str = "counted", **fields: object) -> pb.Contribution:
    values: dict[str, object] = {
        "examples": 100,
        "weight": 0.5,
        "update_norm": 1.5,
        "train_seconds": 0.25,
        "transfer_seconds": 0.125,
        "bytes_up": 4096,
        "bytes_down": 8192,
        "train_metrics": {"loss": 0.5},
        "metrics": {"loss": 0.4, "accuracy": 0.9},
        "update_digest": "ab" * 32,
        "validation_examples": 20,
    }
    return pb.Contribution(site=site, outcome=outcome, **{**values, **fields})  # type: ignore[arg-type]


def round_report(number: int, *contributions: pb.Contribution, **fields: object) -> pb.RoundReport:
    values: dict[str, object] = {
        "epoch": 1,
        "sequence": number,
        "started_at": 1_790_000_000.0 + number,
        "seconds": 2.5,
        "phase_seconds": {"collect": 1.5, "select": 0.25, "commit": 0.25},
        "train_metrics": {"loss": 0.5},
        "metrics": {"loss": 0.4, "accuracy": 0.9},
        "model_digest": "cd" * 32,
        "is_best": number == 1,
        "bytes_down": 16384,
        "bytes_up": 8192,
        "update_norm": 0.75,
    }
    return pb.RoundReport(round=number, contributions=contributions, **{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def reply() -> pb.GetExperimentReply:
    """Two rounds, two sites; in the second round one site failed, and one metric is missing."""
    transition = pb.Transition(
        state=pb.EXPERIMENT_STATE_COMPLETED,
        reason=HOSTILE,
        actor="spiffe://demo/aggregator/tumours-abcdefgh",
        at=1_790_000_009.0,
    )
    return pb.GetExperimentReply(
        summary=pb.ExperimentSummary(
            experiment="tumours-abcdefgh",
            name="tumours",
            project="default",
            submitted_by="alice",
            state=pb.EXPERIMENT_STATE_COMPLETED,
            reason=HOSTILE,
            degraded=True,
            rounds_done=2,
            rounds_planned=2,
            submitted_at=1_790_000_000.0,
            changed_at=1_790_000_009.0,
            sites=["north", "south"],
        ),
        plan_json='{"rounds": 2, "note": "<script>"}',
        sites=[
            pb.SiteParticipation(site="north", answer="finished", shards=["tumours"], examples=100),
            pb.SiteParticipation(site="south", answer="lost", reason=HOSTILE, shards=["tumours"], examples=50),
            pb.SiteParticipation(site="west", answer="refused", reason=HOSTILE),
        ],
        rounds=[
            round_report(1, contribution("north"), contribution("south")),
            round_report(
                2,
                contribution("north", weight=1.0, staleness=2),
                contribution("south", "failed", reason=HOSTILE, weight=0.0, train_metrics={}, metrics={}),
                metrics={"loss": 0.3},
            ),
        ],
        artifacts=[pb.Artifact(name="best.safetensors", bytes=1234, digest="ef" * 32, round=1)],
        transitions=[transition],
        manifest_digest="01" * 32,
        signing_fingerprint="sha256:" + "23" * 32,
        aggregator="127.0.0.1:7001",
    )
