"""`federation simulate`: an experiment's folder on simulated sites, with bars while it runs and a table at its end.

The simulation itself is `federation.simulation.simulate`; here words of a command line become its arguments.
"""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from federation.client.exits import Exit
from federation.client.grid import parse_changes
from federation.client.progress import format_metrics, printable
from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.rounds.history import RoundRecord
    from federation.simulation import RunResult, Script, TimeModel
    from federation.simulation.profiling import Profile

_PROFILE_FILE = "profile.json"
EXECUTORS = ("serial", "processes", "threads", "ray")


def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder with experiment.py.")],
    sites: Annotated[int, typer.Option(min=1, help="Sites to simulate.")] = 10,
    sample: Annotated[int | None, typer.Option(min=1, help="Sites asked each round, instead of the plan's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Sites that train at once.")] = 1,
    partition: Annotated[str, typer.Option(help="How the data is divided, such as dirichlet:0.3.")] = "iid",
    data: Annotated[str | None, typer.Option(help="Whole dataset, module:Class[:json]; or the experiment's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Plan field, such as algorithm=fedprox or options.mu=0.1; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Root seed, instead of the plan's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; without one nothing is kept.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Begin anew, or go on with the run in --out.")
    ] = False,
    executor: Annotated[
        str | None, typer.Option(help="serial, processes, threads or ray; see docs/simulation.md.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:N or auto, instead of what the task says.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, such as auto; without one ray is started.")
    ] = None,
    script: Annotated[Path | None, typer.Option(help="TOML of failures, losses, delays and late joiners.")] = None,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Probability that an asked site is lost.")] = 0.0,
    speed: Annotated[str, typer.Option(help="constant or lognormal:SIGMA, of simulated time.")] = "",
    bandwidth: Annotated[str, typer.Option(help="UP,DOWN of a site, bytes a second of simulated time.")] = "",
    attack: Annotated[
        str | None, typer.Option(help="What hostile sites do, such as ipm:2, alie:opt or label_flip.")
    ] = None,
    hostile: Annotated[int, typer.Option(min=0, help="Hostile sites, the last by name; they need --attack.")] = 0,
    label: Annotated[str, typer.Option(help="What `compare` calls the run.")] = "",
    tracker: Annotated[list[str] | None, typer.Option(help="csv, tensorboard, mlflow, wandb, each [:WHERE].")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Table of time by component; trace of round 2.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per round, and nothing else.")] = False,
) -> None:
    """Run an experiment on simulated sites: the same model as a federation of them would give, without a network."""
    from federation.client.notes import print_notes
    from federation.simulation import simulate as run
    from federation.tracking import load_tracker

    if executor is not None and executor not in EXECUTORS:
        raise ConfigurationError(f"--executor {executor}: give one of {', '.join(EXECUTORS)}")
    changes = parse_changes(settings or ())
    measured = _profile((out or Path()) / _PROFILE_FILE) if profile else None
    with ExitStack() as stack:
        show = _json_line if as_json else stack.enter_context(_Bar(Console(stderr=True)))

        ran = 0

        def on_round(record: RoundRecord) -> None:
            nonlocal ran
            ran += 1
            if measured is not None:
                measured.round_done(record.round)
            show(record)

        try:
            result = run(
                folder, sites=sites, sample=sample, workers=workers, partition=partition, data=data, seed=seed,
                folder=out, device=device, ray_address=ray_address, executor=executor,  # type: ignore[arg-type]  # checked above
                resume=not fresh, on_round=on_round, script=_script(script, drop), times=_times(speed, bandwidth),
                trackers=[load_tracker(text) for text in tracker or ()], profile=measured, changes=changes, label=label,
                attack=attack, hostile=hostile,
                command=shlex.join(["federation", *sys.argv[1:]]),
            )  # fmt: skip
        except KeyboardInterrupt as interrupt:
            # Said here: the command line's own handling of Ctrl-C knows no text.
            print(f"federation: {str(interrupt) or 'interrupted'}", file=sys.stderr)
            raise typer.Exit(Exit.INTERRUPTED) from None
    if measured is not None:
        measured.finish()
        _print_table(*measured.table(), console=Console(stderr=as_json))
    print_notes(result.spec)
    _say_what_was_there(result, ran)
    if not as_json:
        _print_result(result, trace=measured.traced if measured is not None else None)
    if result.outcome != "completed":
        _say_why(result)
        raise typer.Exit(Exit.EXPERIMENT_FAILED)


def _say_why(result: RunResult) -> None:
    """Tell why it failed: with the traceback of what a site raised last, for here the author is at home."""
    last = ""
    if result.failures:
        number, site, failure = result.failures[-1]
        print(f"round {number}, {site}:\n{failure.traceback}", file=sys.stderr)
        last = f"; {site} last raised {failure.error_class}: {' '.join(failure.text.split())}"
    print(f"federation: the experiment {result.outcome}: {result.reason}{last}", file=sys.stderr)


def _say_what_was_there(result: RunResult, ran: int) -> None:
    """Tell that rounds of the result are of an earlier command."""
    before = len(result.records) - ran
    if before:
        done = f"went on after round {before}" if ran else "has ended already, and nothing was run"
        print(f"federation: the run in {result.folder} {done}; --fresh begins anew", file=sys.stderr)


def _script(path: Path | None, drop: float) -> Script | None:
    from federation.simulation import Script

    if path is None:
        return Script.dropping(drop) if drop else None
    loaded = Script.load(path)
    return replace(loaded, rules=loaded.rules + Script.dropping(drop).rules) if drop else loaded


def _times(speed: str, bandwidth: str) -> TimeModel | None:
    from federation.simulation import TimeModel

    chosen: dict[str, Any] = {"speed": speed} if speed else {}
    if bandwidth:
        try:
            chosen["up"], chosen["down"] = (float(part) for part in bandwidth.split(","))
        except ValueError as error:
            raise ConfigurationError(f"--bandwidth {bandwidth}: give UP,DOWN, such as 12.5e6,125e6") from error
    return TimeModel(**chosen) if chosen else None


def _profile(trace: Path) -> Profile:
    from federation.simulation.profiling import Profile

    return Profile(trace)


def _json_line(record: RoundRecord) -> None:
    print(json.dumps(record.to_json()), flush=True)


class _Bar:
    """A bar over rounds; without a terminal, nothing. Called with each record."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("round"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Callable[[RoundRecord], None]:
        self._progress.start()
        self._task = self._progress.add_task("rounds", total=None, note="")
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, record: RoundRecord) -> None:
        note = printable(format_metrics(record.metrics or record.train_metrics))
        self._progress.update(self._task, completed=record.round, note=note)


def _print_result(result: RunResult, *, trace: Path | None) -> None:
    console = Console()
    if not result.records:
        return
    measured = [record for record in result.records if record.metrics]
    last = measured[-1] if measured else result.records[-1]
    seconds = sum(record.seconds for record in result.records)
    simulated = sum(record.simulated_seconds for record in result.records)
    up, down = sum(r.bytes_up for r in result.records), sum(r.bytes_down for r in result.records)
    rows = [
        ["rounds", str(len(result.records))],
        ["last measured", f"round {last.round}: {format_metrics(last.metrics or last.train_metrics)}"],
        ["best", f"round {result.best_round}" if result.best_round else "not measured"],
        ["sent, received by the server", f"{8 * down:.4g} bits, {8 * up:.4g} bits"],
        ["seconds", f"{seconds:.2f} ({simulated:.4g} simulated)"],
        ["run folder", str(result.folder or "none; keep it with --out")],
    ]
    if result.attack_success is not None:
        rows.append(["triggered examples taken for the target", f"{result.attack_success:.1%}"])
    if result.report is not None and result.folder is not None:
        rows.append(["what each site has", str(result.folder / "partition.svg")])
    if trace is not None:
        rows.append(["trace, for ui.perfetto.dev", str(trace)])
    _print_table(["", result.spec.name], rows, console=console)


def _print_table(head: list[str], rows: list[list[str]], *, console: Console) -> None:
    table = Table(*head)
    for cells in rows:
        table.add_row(*map(printable, cells))
    console.print(table)
