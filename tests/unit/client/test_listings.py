"""Tables of `list`, `show` and `envoys`: at 80 columns no word is broken, and nothing of a value is ever cut."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from federation.client import views
from federation.client.listings import artifacts_table, envoys_table, experiments_table, rounds_table, sites_table
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from rich.table import Table

FINGERPRINT = "sha256:" + "23" * 32


def drawn(table: Table, *, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, legacy_windows=False).print(table)
    return stream.getvalue()


def envoy(name: str, description: str, *held: str) -> views.Envoy:
    shard = pb.ShardOffer(
        name="wards", kind="wards", train_examples=12345, validation_examples=678, sample_shape=[3, 32, 32],
        description=description,
    )  # fmt: skip
    return views.envoy_of(pb.EnvoySummary(site=name, online=True, running=1, shards=[shard], quarantined_in=held))


def test_envoys_fit_80_columns_without_a_broken_word() -> None:
    lines = drawn(envoys_table([envoy("north", "beds and stays"), envoy("south", "beds and stays")])).splitlines()
    assert [word.strip() for word in lines[1].strip("┃").split("┃")] == [
        "site", "state", "shard", "kind", "examples", "sample", "description",
    ]  # fmt: skip
    assert "north" in lines[3] and "runs 1" in lines[3] and "12345 + 678" in lines[3] and "[3, 32, 32]" in lines[3]


def test_quarantine_has_a_column_once_somebody_is_in_it() -> None:
    assert "quarantined" not in drawn(envoys_table([envoy("north", "")]), width=120)
    assert "trial-1a2b3c4d" in drawn(envoys_table([envoy("north", "", "trial-1a2b3c4d")]), width=120)


def test_an_envoy_without_shards_is_listed() -> None:
    shown = drawn(envoys_table([views.envoy_of(pb.EnvoySummary(site="north"))]))
    assert "offline" in shown and "offers nothing" in shown


def test_a_reason_has_a_column_once_one_says_more_than_that_all_rounds_are_done(reply: pb.GetExperimentReply) -> None:
    summary = dataclasses.replace(
        views.details_of(reply).summary, experiment="breast-cancer-jm4r1075", submitted_by="researcher",
        sites=("island", "north", "south"), state="completed", reason="all 2 rounds are committed", degraded=False,
    )  # fmt: skip
    lines = drawn(experiments_table([summary])).splitlines()
    assert "reason" not in lines[1]
    assert "researcher" in lines[3] and "island, north," in lines[3]
    failed = dataclasses.replace(summary, state="failed", reason="quorum missed")
    for row in (
        failed,
        dataclasses.replace(summary, rounds_done=1, reason="stopped early"),
        dataclasses.replace(summary, degraded=True),
    ):
        shown = drawn(experiments_table([summary, row]))
        assert "reason" in shown and "researcher" in shown


def test_experiments_fit_80_columns_without_a_broken_word(reply: pb.GetExperimentReply) -> None:
    summary = dataclasses.replace(views.details_of(reply).summary, submitted_by="researcher", state="completed")
    row = dataclasses.replace(summary, experiment="numpy-logistic-p7n7dxux", reason="all 20 rounds are committed")
    shown = drawn(experiments_table([row]))
    assert [word for word in ("numpy-logistic-p7n7dxux", "completed", "(degraded)") if word not in shown] == []
    assert "project" not in shown


def test_projects_have_a_column_once_there_are_several(reply: pb.GetExperimentReply) -> None:
    row = views.details_of(reply).summary
    assert "lungs" in drawn(experiments_table([row, dataclasses.replace(row, project="lungs")]), width=120)


@pytest.mark.parametrize("width", [80, 50])
def test_a_fingerprint_in_a_reason_is_folded_and_never_cut(reply: pb.GetExperimentReply, width: int) -> None:
    reply.sites[2].reason = f"the key of this bundle is {FINGERPRINT}: compare it"
    lines = drawn(sites_table(views.details_of(reply)), width=width).splitlines()
    folded = "".join(line.strip("│").split("│")[-1].strip() for line in lines if line.startswith("│"))
    assert FINGERPRINT in folded
    assert "…" not in folded


def test_rounds_and_artifacts_are_listed_whole(reply: pb.GetExperimentReply) -> None:
    details = views.details_of(reply)
    assert "1/2" in drawn(rounds_table(details.rounds)) and "loss 0.3" in drawn(rounds_table(details.rounds))
    assert "best.safetensors" in drawn(artifacts_table(details.artifacts))
