"""What the three studies share: run every case for every seed, then draw means and deviations over rounds and bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from experiment import run

from federation.client.compare import compare_runs, table_of, write_picture
from federation.client.grid import parse_seeds
from federation.client.runs import find_runs, is_finished

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


def main_of(name: str, cases: Mapping[str, Mapping[str, Any]]) -> Callable[..., None]:
    """Return the command of a study.

    Args:
        name: of its figures.
        cases: label of each curve, and what `experiment.run` is given for it.
    """

    def main(
        seeds: Annotated[str, typer.Option(help="Such as 0:10.")] = "0:10",
        out: Annotated[Path, typer.Option(help="Folder for the run folders.")] = Path("runs/quadratics"),
        figures: Annotated[Path, typer.Option(help="Folder for the figures.")] = FIGURES,
    ) -> None:
        folders = []
        for label, fields in cases.items():
            for seed in parse_seeds(seeds):
                folder = out / name / f"{label.replace(' ', '-').replace('%', '')}-{seed}"
                folders.append(folder)
                if not is_finished(folder):
                    run(seed=seed, folder=folder, label=label, **fields)
        runs = find_runs(folders)
        for x in ("rounds", "bits_up"):
            comparison = compare_runs(runs, x=x, y="gradient_square")
            write_picture(comparison, figures / f"{name}-{x.replace('_', '-')}.png")
        head, rows = table_of(dataclasses.replace(comparison, x="rounds"))
        for cells in [head, *rows]:
            print("  ".join(cells[:6]))

    return main
