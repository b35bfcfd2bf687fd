"""The comparison as table, CSV, page and picture, and the command that makes them."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from federation.client.command import app
from federation.client.compare import compare_runs, is_logarithmic, render_page, table_of, write_csv, write_picture
from federation.client.curves import Goal
from federation.client.runs import find_runs
from federation.errors import ConfigurationError, NotFoundError, StorageError

from .made_runs import make_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"avg-{seed}", [0.5, 0.2, 0.05 + 0.1 * seed], seed=seed)
        make_run(tmp_path / "runs" / f"prox-{seed}", [0.5, 0.4, 0.3], seed=seed, plan={"algorithm": "fedprox"})
    return tmp_path / "runs"


def test_rows_hold_means_over_seeds_and_what_reaches_the_goal(runs: Path) -> None:
    comparison = compare_runs(find_runs([runs]), goal=Goal.parse("accuracy=0.8"))
    avg, prox = comparison.rows
    assert (avg.label, avg.seeds, avg.rounds, avg.met, avg.reached_rounds, avg.reached_bits) == (
        "fedavg", 2, 3, 2, 2.0, 480.0,
    )  # fmt: skip
    assert avg.last == pytest.approx(0.1)
    assert (prox.met, prox.reached_rounds, prox.reached_bits) == (0, None, None)
    _, (first, second) = table_of(comparison)
    assert first[-2:] == ["2", "480"]
    assert second[-2:] == ["not in 2 of 2", ""]


def test_the_csv_holds_every_point(runs: Path, tmp_path: Path) -> None:
    write_csv(compare_runs(find_runs([runs]), x="bits"), tmp_path / "out" / "points.csv")
    rows = list(csv.DictReader((tmp_path / "out" / "points.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert rows[0] == {"run": "fedavg", "seeds": "2", "round": "1", "bits": "240.0", "loss": "0.5", "std": "0.0",
                       "geometric mean": "0.5", "factor": "1.0"}  # fmt: skip


def test_the_page_stands_alone_and_shows_a_band_and_escapes_labels(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / str(seed), [0.5, 0.2 + seed], seed=seed, label="<script>")
    page = render_page(compare_runs(find_runs([tmp_path])))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<polygon" in page and "http" not in page


def test_a_curve_over_many_decades_is_logarithmic(tmp_path: Path) -> None:
    wide = compare_runs(find_runs([make_run(tmp_path / "a", [1.0, 1e-5])]))
    narrow = compare_runs(find_runs([make_run(tmp_path / "b", [1.0, 0.5])]))
    assert is_logarithmic(wide) and not is_logarithmic(narrow)
    assert "1e-05" in render_page(wide)


def test_the_picture_is_drawn(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_picture(compare_runs(find_runs([runs])), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigurationError, match=r"give a name in \.png"):
        write_picture(compare_runs(find_runs([runs])), tmp_path / "curves.nonsense")


def test_what_no_run_measured_names_what_there_is(runs: Path) -> None:
    with pytest.raises(NotFoundError, match="there are: accuracy, loss, train:loss, update_norm"):
        compare_runs(find_runs([runs]), y="f1")
    with pytest.raises(NotFoundError, match="no runs"):
        compare_runs([])


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_numbers_are_whole_however_narrow_the_terminal_is(runs: Path, columns: str) -> None:
    shown = CliRunner(env={"COLUMNS": columns}).invoke(app, ["compare", str(runs), "--to", "loss=0.5"])
    assert shown.exit_code == 0
    assert "…" not in shown.output
    assert "bits to it" in shown.output


@pytest.mark.parametrize(("option", "name"), [("--csv", "c.csv"), ("--html", "c.html"), ("--png", "c.png")])
def test_a_file_that_cannot_be_written_is_named(runs: Path, tmp_path: Path, option: str, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=rf"cannot write .*/file/{name}: "):
        CliRunner().invoke(app, ["compare", str(runs), option, str(tmp_path / "file" / name)], catch_exceptions=False)


def test_the_command_prints_a_table_or_json_and_writes_its_files(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = ["compare", str(runs), "--to", "accuracy=0.8", "--x", "bits_up"]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--html", str(page)])
    assert shown.exit_code == 0 and "fedprox" in shown.output and page.exists()
    lines = CliRunner().invoke(app, [*arguments, "--json"]).output.splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["fedavg", "fedprox"]
