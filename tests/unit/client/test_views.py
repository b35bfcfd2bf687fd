"""Views: nothing is lost between the wire and JSON, and the keys scripts rely on stay."""

from __future__ import annotations

import dataclasses
import json

import pytest

from federation.client import views
from federation.names import ExperimentState
from federation.v1 import director_pb2 as pb


def test_all_of_an_experiment_is_read(reply: pb.GetExperimentReply) -> None:
    details = views.details_of(reply)
    assert details.summary.experiment == "tumours-abcdefgh"
    assert details.summary.state == "completed" and details.summary.is_over
    assert details.plan == {"rounds": 2, "note": "<script>"}
    assert [site.answer for site in details.sites] == ["finished", "lost", "refused"]
    assert [report.round for report in details.rounds] == [1, 2]
    assert details.rounds[0].contributions[0].metrics == {"loss": 0.4, "accuracy": 0.9}
    assert details.artifacts == (views.Artifact(name="best.safetensors", bytes=1234, digest="ef" * 32, round=1),)
    assert details.transitions[0].state == "completed"


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (views.summary_of, pb.ExperimentSummary(experiment="a-abcdefgh", state=pb.EXPERIMENT_STATE_RUNNING)),
        (views.artifact_of, pb.Artifact(name="last.safetensors", bytes=3, digest="00", round=2)),
        (views.transition_of, pb.Transition(state=pb.EXPERIMENT_STATE_FAILED, reason="r", actor="a", at=1.0)),
        (views.round_of, pb.RoundReport(round=1, epoch=1, contributions=[pb.Contribution(site="north")])),
        (views.envoy_of, pb.EnvoySummary(site="north", shards=[pb.ShardOffer(name="s", kind="k", sample_shape=[30])])),
    ],
    ids=["summary", "artifact", "transition", "round", "envoy"],
)
def test_every_view_survives_json(read, message) -> None:  # type: ignore[no-untyped-def]
    view = read(message)
    assert json.loads(views.to_json(view)) == json.loads(json.dumps(dataclasses.asdict(view)))


def test_a_view_has_every_field_of_its_message() -> None:
    pairs = [
        (views.ExperimentSummary, pb.ExperimentSummary, {}),
        (views.Artifact, pb.Artifact, {}),
        (views.SiteParticipation, pb.SiteParticipation, {}),
        (views.Transition, pb.Transition, {}),
        (views.Contribution, pb.Contribution, {}),
        (views.Shard, pb.ShardOffer, {}),
        (views.Envoy, pb.EnvoySummary, {}),
        (views.Progress, pb.PhaseChange, {}),
        (views.Round, pb.RoundReport, {"sequence": None}),
        (views.Event, pb.Event, {"report": "round", "phase": "progress"}),
        (views.ExperimentDetails, pb.GetExperimentReply, {"plan_json": "plan"}),
    ]
    for view, message, renamed in pairs:
        sent = {renamed.get(field.name, field.name) for field in message.DESCRIPTOR.fields} - {None}
        assert sent <= {field.name for field in dataclasses.fields(view)}, message.DESCRIPTOR.name


def test_json_keys_are_those_scripts_rely_on(reply: pb.GetExperimentReply) -> None:
    document = json.loads(views.to_json(views.details_of(reply)))
    assert {
        "summary",
        "plan",
        "sites",
        "rounds",
        "artifacts",
        "transitions",
        "manifest_digest",
        "signing_fingerprint",
        "aggregator",
    } <= document.keys()
    assert {
        "experiment",
        "name",
        "project",
        "submitted_by",
        "state",
        "reason",
        "degraded",
        "rounds_done",
        "rounds_planned",
        "submitted_at",
        "changed_at",
        "sites",
    } <= document["summary"].keys()
    assert {"round", "seconds", "phase_seconds", "metrics", "train_metrics", "is_best", "contributions"} <= document[
        "rounds"
    ][0].keys()


def test_a_list_of_views_is_one_line_of_json() -> None:
    text = views.to_json([views.artifact_of(pb.Artifact(name="a")), views.artifact_of(pb.Artifact(name="b"))])
    assert "\n" not in text
    assert [entry["name"] for entry in json.loads(text)] == ["a", "b"]


@pytest.mark.parametrize("state", list(ExperimentState), ids=lambda state: state.value)
def test_state_names_round_trip(state: ExperimentState) -> None:
    assert views.state_name(views.state_value(state.value)) == state.value


def test_an_event_carries_what_its_kind_promises() -> None:
    phase = views.event_of(pb.Event(sequence=3, kind="phase", phase=pb.PhaseChange(round=2, phase="collect")))
    assert phase.progress is not None and phase.progress.phase == "collect"
    assert phase.round is None and phase.transition is None
    committed = views.event_of(pb.Event(sequence=4, kind="round", report=pb.RoundReport(round=2)))
    assert committed.round is not None and committed.round.round == 2
    state = views.event_of(pb.Event(kind="state", transition=pb.Transition(state=pb.EXPERIMENT_STATE_RUNNING)))
    assert state.transition is not None and state.transition.state == "running"


def test_an_experiment_without_a_plan_has_an_empty_one() -> None:
    assert views.details_of(pb.GetExperimentReply()).plan == {}
