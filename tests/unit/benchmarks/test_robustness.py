"""The robustness table: cells are run once, refusals are results, and the page says who fell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import robustness
from benchmarks.robustness import ATTACKS, DEFENCES, HOSTILE, NONE, PARTITIONS, Cell, Outcome, fill, read, run
from benchmarks.robustness_page import page_of
from federation.attacks import load_attack

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("sklearn")


def cell(defence: str = "mean", attack: str = NONE, hostile: int = 0, **changes: object) -> Cell:
    return Cell(**{"defence": defence, "attack": attack, "hostile": hostile, "partition": "iid", "seed": 0, **changes})  # type: ignore[arg-type]


def test_the_table_has_every_rule_and_every_attack_that_a_rule_can_see() -> None:
    from federation.aggregation.registry import RULES

    assert {defence.plan["rule"] for defence in DEFENCES.values()} >= set(RULES)
    assert [load_attack(spec).spec for spec in ATTACKS] == list(ATTACKS)
    cells = robustness.full_cells()
    assert len(set(cells)) == len(cells) == len(DEFENCES) * len(PARTITIONS) * 3 * (1 + len(ATTACKS) * len(HOSTILE))
    assert set(robustness.brief_cells()) <= set(cells)


def test_a_cell_repeats_and_a_few_rounds_of_it_learn() -> None:
    first, second = (run(cell(rounds=5)) for _ in range(2))
    assert first.accuracy == second.accuracy
    assert first.accuracy is not None and first.accuracy > 0.5 and not first.reason


def test_a_rule_that_cannot_stand_so_many_is_a_result_and_not_an_error() -> None:
    refused = run(cell("krum", "ipm:2", 4))
    assert refused.accuracy is None and "2f + 2 < n" in refused.reason


def test_a_backdoor_has_a_success_rate() -> None:
    found = run(cell("mean", "backdoor:0", 4, rounds=5))
    assert found.success is not None and 0 <= found.success <= 1


def test_cells_that_are_there_are_not_run_again_and_a_cut_line_is(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    cells = [cell(rounds=1), cell(rounds=1, seed=1)]
    assert sorted(each for each, _ in fill(cells, path, workers=1)) == cells
    whole = path.read_text()
    assert list(fill(cells, path, workers=1)) == []
    path.write_text(whole[:-5])
    assert len(read(path)) == 1
    assert len(list(fill(cells, path, workers=1))) == 1
    assert set(read(path)) == set(cells)


def test_cells_of_another_plan_are_run_again_and_lines_without_a_digest_are_of_todays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.jsonl"
    cells = [cell(rounds=1), cell("median", rounds=1)]
    list(fill(cells, path, workers=1))
    changed = {"rule": "median", "weighting": "uniform"}
    with monkeypatch.context() as patch:
        patch.setitem(robustness.DEFENCES, "median", robustness.Defence(plan=changed))
        robustness._plan_digest.cache_clear()
        assert set(read(path)) == {cells[0]}
        assert [each for each, _ in fill(cells, path, workers=1)] == [cells[1]]
        assert list(fill(cells, path, workers=1)) == []
    robustness._plan_digest.cache_clear()
    assert set(read(path)) == set(cells), "of the plan of today, before the other"
    older = [json.loads(line) for line in path.read_text().splitlines()][:2]
    path.write_text("".join(json.dumps({name: row[name] for name in ("cell", "outcome")}) + "\n" for row in older))
    assert list(fill(cells, path, workers=1)) == []


def test_the_page_marks_best_fallen_early_and_refused() -> None:
    found = {
        cell(defence, NONE, 0, seed=seed): Outcome(accuracy=0.95 + seed / 100)
        for seed in (0, 1)
        for defence in DEFENCES
    }
    for attack in ATTACKS:
        for seed in (0, 1):
            found[cell("mean", attack, 2, seed=seed)] = Outcome(accuracy=0.1, reason="not finite")
            found[cell("median", attack, 2, seed=seed)] = Outcome(accuracy=0.9)
            found[cell("bulyan", attack, 2, seed=seed)] = Outcome(accuracy=None, reason="n ≥ 4f + 3")
    text = page_of(found)
    table = text.split("## 2 of 10 hostile, IID")[1].split("## ")[0]
    rows = {line.split("`")[1]: line for line in table.splitlines() if "`" in line}
    assert "| **90.0 ± 0.0** |" in rows["median"] and "✗" not in rows["median"]
    assert "| 10.0 ± 0.0 † ✗ |" in rows["mean"]
    assert "| n/a |" in rows["bulyan"] and "| – |" in rows["krum"]
    backdoors = text.split("## The backdoor")[1]
    assert "| `bulyan` | n/a | – |" in backdoors and "| `krum` | – | – |" in backdoors
    assert "- `bulyan`, f = 2: n ≥ 4f + 3." in text
    assert "| `mean` | 95.5 ± 0.7 | – |" in text
    assert "## 4 of 10" not in text
