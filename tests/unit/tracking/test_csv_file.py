"""The CSV of a run: a row per round, columns that appear later included, readable after each round."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import ConfigurationError
from federation.names import Epoch, RoundNumber, SiteName
from federation.rounds.history import RoundRecord, SiteOutcome, SiteRecord
from federation.tracking.csv_file import CsvTracker
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from pathlib import Path


def record(number: int, **fields: Any) -> RoundRecord:
    sites = tuple(
        SiteRecord(site=SiteName(name), outcome=outcome, oracle_calls=5, peak_memory=memory)
        for name, outcome, memory in (("a", SiteOutcome.COUNTED, 7), ("b", SiteOutcome.LOST, 9))
    )
    values = {"metrics": {"loss": 0.5}, "bytes_up": 2, "bytes_down": 3, "model_digest": "", "sites": sites, **fields}
    return RoundRecord(round=RoundNumber(number), epoch=Epoch(1), started_at=0.0, seconds=1.5, **values)


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_each_round_is_a_row_at_once(tmp_path: Path) -> None:
    tracker = CsvTracker(str(tmp_path / "r.csv"))
    tracker.start({})
    for number in (1, 2):
        tracker.round(record(number))
        assert [row["round"] for row in rows(tmp_path / "r.csv")] == [str(n) for n in range(1, number + 1)]
    tracker.end("completed")
    assert rows(tmp_path / "r.csv")[0]["loss"] == "0.5"


def test_a_number_that_appears_late_gets_a_column_and_earlier_rounds_an_empty_cell(tmp_path: Path) -> None:
    tracker = CsvTracker(str(tmp_path))
    tracker.start({})
    tracker.round(record(1, metrics={}))
    tracker.round(record(2, metrics={"accuracy": 0.9}))
    assert [row["accuracy"] for row in rows(tmp_path / "rounds.csv")] == ["", "0.9"]


def test_a_place_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="tracker csv cannot write"):
        CsvTracker(str(tmp_path / "file" / "r.csv")).start({})


def test_the_numbers_of_a_round_add_up_its_sites() -> None:
    numbers = scalars_of(record(1, train_metrics={"loss": 2.0}, algorithm_scalars={"tau": 3.0}))
    assert numbers["oracle_calls"] == 10 and numbers["sites_counted"] == 1 and numbers["peak_memory"] == 9
    assert (numbers["bits_up"], numbers["train/loss"], numbers["scalar/tau"]) == (16.0, 2.0, 3.0)


def test_parameters_are_flat_and_plain() -> None:
    found = parameters_of({"spec": {"plan": {"best": {"metric": "loss"}, "sample": None, "rounds": 3}}, "sites": ["a"]})
    assert found == {"best.metric": "loss", "sample": "None", "rounds": 3, "sites": "['a']", "partition": "None"}


def test_scores_are_a_column_per_site_and_of_many_sites_their_median_and_the_largest() -> None:
    def scored(count: int) -> dict[str, float]:
        rows = tuple(
            SiteRecord(site=SiteName(f"s{index}"), outcome=SiteOutcome.COUNTED, scores={"distance": float(index)})
            for index in range(count)
        )
        return {name: value for name, value in scalars_of(record(1, sites=rows)).items() if "distance" in name}

    assert scored(2) == {"distance/s0": 0.0, "distance/s1": 1.0}
    assert scored(41) == {"distance/median": 20.0, "distance/max": 40.0}
