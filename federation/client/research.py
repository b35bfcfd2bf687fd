"""The sub-commands that need no federation: `compare` and `sweep`. Thin over the modules of the same names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table

from federation.client.exits import Exit

if TYPE_CHECKING:
    from federation.client.sweep import Finished

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line, and nothing else.")]


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them, such as a sweep's.")],
    x: Annotated[
        str, typer.Option("--x", help="rounds, bits_up, bits_down, bits, seconds or oracle_calls.")
    ] = "rounds",
    y: Annotated[str, typer.Option("--y", help="A metric; train:NAME for one of training; update_norm.")] = "loss",
    to: Annotated[str, typer.Option("--to", help="Goal, such as accuracy=0.9: rounds and bits to it.")] = "",
    png: Annotated[Path | None, typer.Option("--png", help="Draw the curves (.png, .svg or .pdf).")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write a self-contained page.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write every point of every curve.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Put runs beside each other: mean and deviation over seeds, as a table, a picture and a page."""
    from federation.client import compare as comparing
    from federation.client.curves import Goal
    from federation.client.runs import find_runs

    goal = Goal.parse(to) if to else None
    comparison = comparing.compare_runs(find_runs(runs), x=x, y=y, goal=goal)
    if png is not None:
        comparing.write_picture(comparison, png)
    if page is not None:
        comparing.write_page(comparison, page)
    if csv is not None:
        comparing.write_csv(comparison, csv)
    if as_json:
        for row in comparison.rows:
            print(json.dumps(dataclasses.asdict(row)), flush=True)
        return
    _print_whole(*comparing.table_of(comparison), Console())


def _print_whole(head: list[str], rows: list[list[str]], console: Console) -> None:
    """Print a table of runs with every number whole: where the console is too narrow for it, a table for each run."""
    table = Table(*(Column(name, no_wrap=True) for name in head))
    for cells in rows:
        table.add_row(*map(escape, cells))
    if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
        console.print(table)
        return
    for cells in rows:
        single = Table(Column(overflow="fold"), Column(overflow="fold"), show_header=False)
        for name, cell in zip(head, cells, strict=True):
            single.add_row(escape(name), escape(cell))
        console.print(single)


def sweep(
    folder: Annotated[Path, typer.Argument(help="Folder with experiment.py.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Plan field and its values, such as learning_rate=0.1,0.01; may be repeated."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0:10 or 1,5; without it, the plan's.")] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run folders.")] = Path("runs"),
    parallel: Annotated[int, typer.Option("--parallel", "-j", min=1, max=1024, help="Runs at a time.")] = 1,
    sites: Annotated[int | None, typer.Option(min=1, help="Sites of each run, as in `simulate`.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Sites asked each round.")] = None,
    partition: Annotated[str, typer.Option(help="How the data is divided, such as dirichlet:0.3.")] = "",
    data: Annotated[str, typer.Option(help="Whole dataset, module:Class[:json].")] = "",
    tracker: Annotated[
        list[str] | None,
        typer.Option(help="csv, tensorboard, mlflow, wandb, each [:WHERE]; each run is one of its own."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate every combination of settings and seeds; what has ended already is not run again."""
    from federation.client.grid import make_grid, parse_seeds, parse_values
    from federation.client.sweep import Sweep
    from federation.tracking import load_tracker

    cells = make_grid([parse_values(text) for text in settings or ()], parse_seeds(seeds) if seeds else None)
    given = {"--sites": sites, "--sample": sample, "--partition": partition, "--data": data}
    shared = [word for name, value in given.items() if value for word in (name, str(value))]
    for text in tracker or ():
        load_tracker(text)  # that there is none is said before anything runs
    runner = Sweep(folder, shared=shared, out=out, parallel=parallel, trackers=tracker or ())
    count = 0

    def show(finished: Finished) -> None:
        """Print a cell as it ends."""
        nonlocal count
        count += 1
        if as_json:
            print(_finished_json(finished), flush=True)
            return
        state = "there already" if finished.was_skipped else "done" if not finished.code else f"exit {finished.code}"
        if finished.went_on_after:
            state += f", went on after round {finished.went_on_after}"
        note = f": {finished.message}" if finished.code else ""
        text = f"{count}/{len(cells)} {finished.cell.describe()}  {state}  {finished.folder}{note}"
        Console().print(text, markup=False, highlight=False, soft_wrap=True)

    failed = [finished for finished in runner.run(cells, show) if finished.code]
    if failed:
        raise typer.Exit(failed[0].code if failed[0].code > 0 else Exit.FAILURE)


def _finished_json(finished: Finished) -> str:
    return json.dumps(
        {
            "folder": str(finished.folder),
            "settings": dict(finished.cell.settings),
            "seed": finished.cell.seed,
            "exit_code": finished.code,
            "skipped": finished.was_skipped,
            "went_on_after": finished.went_on_after,
            "message": finished.message,
        }
    )
