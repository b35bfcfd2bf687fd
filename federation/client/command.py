"""The `federation` command: thin over `federation.client.federation`, one function per sub-command.

Text for people goes to standard output, progress and errors to standard error; with ``--json`` standard output holds
JSON and nothing else. Exit codes are `federation.client.exits.Exit`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from federation import __version__
from federation.client import pki_commands, research, simulating
from federation.client.exits import Exit, exit_for
from federation.errors import FederationError, TransportError
from federation.names import ExperimentState  # noqa: TC001 - typer reads it at run time
from federation.runtime.room import is_want_of_room

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_TABLE = "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in Exit)


class _Commands(TyperGroup):
    """All commands; typer would end an interrupted one without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C is said."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            said = str(interrupt) or "interrupted; what runs elsewhere goes on"
            print(f"federation: {said}", file=sys.stderr)
            raise typer.Exit(Exit.INTERRUPTED) from None


app = typer.Typer(
    name="federation",
    cls=_Commands,
    help="Train one model together without pooling the data.",
    epilog=EXIT_TABLE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(pki_commands.app, name="pki")
app.command()(simulating.simulate)
app.command()(research.compare)
app.command()(research.sweep)

ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", envvar="FEDERATION_PROFILE", help="Profile file or folder (see the README)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line, and nothing else.")]
ExperimentArgument = Annotated[str, typer.Argument(help="Experiment id, as `submit` and `list` print it.")]


@contextlib.contextmanager
def _connect(profile: Path | None) -> Iterator[Any]:  # a Federation, whose type is imported when it is needed
    from federation.client.federation import Federation  # gRPC loads only for commands that connect
    from federation.client.profile import load_profile

    try:
        with Federation.connect(profile) as federation:
            yield federation
    except TransportError as error:
        if (tls := load_profile(profile).tls) is not None:
            tls.check(now=time.time())  # whoever shows an expired certificate is not told why he is not let in
        raise TransportError(f"{error}; `federation doctor` looks for the reason") from error


def _say_away(_: Exception) -> None:
    from federation.client.resuming import PATIENCE_S

    print(f"federation: the director is away; it is waited for, {PATIENCE_S / 60:g} minutes at most", file=sys.stderr)


def _follow(federation, experiment: str, *, as_json: bool, cursor: int = 0) -> None:  # type: ignore[no-untyped-def]
    from federation.client import views
    from federation.client.progress import follow

    rounds = federation.show(experiment).summary.rounds_planned  # who is not there at all is told at once
    events: Iterator[views.Event] = federation.watch(experiment, cursor=cursor, away=_say_away)
    if as_json:
        for event in events:
            print(views.to_json(event), flush=True)
    else:
        follow(events, rounds=rounds, console=Console(stderr=False))
    summary = federation.show(experiment).summary
    if not as_json:
        note = " (degraded: some rounds had fewer sites than planned)" if summary.degraded else ""
        print(f"{summary.experiment} {summary.state}{note}: {summary.reason}")
    if summary.state == "failed":
        raise typer.Exit(Exit.EXPERIMENT_FAILED)
    if summary.state == "cancelled":
        raise typer.Exit(Exit.EXPERIMENT_CANCELLED)


@app.command()
def submit(
    folder: Annotated[Path, typer.Argument(help="Folder with experiment.py.")],
    profile: ProfileOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show progress until it has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build, sign and submit the experiment in FOLDER; print its id."""
    from federation.client.notes import print_notes
    from federation.client.progress import TransferBar

    with _connect(profile) as federation:
        with TransferBar(Console(stderr=True)) as bar:
            experiment = federation.submit(folder, progress=bar, built=print_notes)
        print(json.dumps({"experiment": experiment}) if as_json else experiment, flush=True)
        if watch:
            _follow(federation, experiment, as_json=as_json)


@app.command("list")
def list_experiments(
    profile: ProfileOption = None,
    project: Annotated[str, typer.Option(help="Only this project.")] = "",
    state: Annotated[list[ExperimentState] | None, typer.Option(help="Only this state; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    as_json: JsonOption = False,
) -> None:
    """List experiments, newest first."""
    from federation.client import views
    from federation.client.listings import experiments_table

    with _connect(profile) as federation:
        found = federation.list(project=project, states=tuple(each.value for each in state or ()), limit=limit)
    if as_json:
        print(views.to_json(found))
        return
    Console().print(experiments_table(found))
    if not found:
        print("no experiment found", file=sys.stderr)
    if len(found) == limit:
        print(f"the newest {limit}; there may be more: --limit", file=sys.stderr)


@app.command()
def show(experiment: ExperimentArgument, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Show one experiment: state, plan, sites, rounds, artifacts."""
    from federation.client import views
    from federation.client.listings import artifacts_table, rounds_table, sites_table
    from federation.client.progress import printable

    with _connect(profile) as federation:
        details = federation.show(experiment)
    if as_json:
        print(views.to_json(details))
        return
    console, summary = Console(), details.summary
    console.print(f"[bold]{summary.experiment}[/bold]  {summary.state}  {printable(summary.reason)}")
    console.print(f"by {summary.submitted_by}, project {summary.project}, signed with {details.signing_fingerprint}")
    console.print(
        f"rounds {summary.rounds_done} of {summary.rounds_planned}" + (", degraded" if summary.degraded else "")
    )
    for table in (sites_table(details), rounds_table(details.rounds), artifacts_table(details.artifacts)):
        console.print(table)


@app.command()
def watch(
    experiment: ExperimentArgument,
    profile: ProfileOption = None,
    cursor: Annotated[int, typer.Option(help="Only events after this one.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Follow an experiment until it has ended; Ctrl-C leaves it running."""
    with _connect(profile) as federation:
        _follow(federation, experiment, as_json=as_json, cursor=cursor)


@app.command()
def cancel(
    experiment: ExperimentArgument,
    profile: ProfileOption = None,
    reason: Annotated[str, typer.Option(help="Why, for everybody who looks at it later.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Cancel an experiment. Doing it twice is harmless."""
    with _connect(profile) as federation:
        state = federation.cancel(experiment, reason=reason)
    print(json.dumps({"experiment": experiment, "state": state}) if as_json else f"{experiment} {state}")


@app.command()
def release(
    experiment: ExperimentArgument,
    site: Annotated[str, typer.Argument(help="Site to release; `show` says who is in quarantine.")],
    profile: ProfileOption = None,
    reason: Annotated[str, typer.Option(help="Why, for everybody who looks at it later.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Let SITE out of quarantine, so that it is asked again. For operators. Doing it twice is harmless."""
    with _connect(profile) as federation:
        since = federation.release(experiment, site, reason=reason)
    if as_json:
        print(json.dumps({"experiment": experiment, "site": site, "released": since > 0, "quarantined_since": since}))
    elif since:
        print(f"{site} is released; it was in quarantine since round {since}")
    else:
        print(f"{site} is not in quarantine")


@app.command()
def logs(
    experiment: ExperimentArgument,
    profile: ProfileOption = None,
    site: Annotated[str, typer.Option(help="Lines this site released; without it, the aggregator's.")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Stay until the experiment has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print an experiment's log lines."""
    is_empty = True
    with _connect(profile) as federation:
        if follow:
            federation.show(experiment)  # who is not there at all is told at once, and not waited for
        for line in federation.logs(experiment, site=site, follow=follow, away=_say_away):
            is_empty = False
            print(json.dumps({"line": line}) if as_json else line, flush=True)
    if site and is_empty:
        print(
            f"{site} released no lines: none were printed there, or its owner keeps them (release_logs in envoy.toml)",
            file=sys.stderr,
        )


@app.command()
def download(
    experiment: ExperimentArgument,
    artifact: Annotated[str, typer.Argument(help="Artifact name; `show` lists them.")] = "best.safetensors",
    output: Annotated[str, typer.Option("--output", "-o", help="File or folder to write.")] = ".",
    run: Annotated[bool, typer.Option("--run", help="Write a run folder instead, for `compare`.")] = False,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a model, the history or another artifact; a cut download goes on where it stopped."""
    from federation.client import views
    from federation.client.progress import TransferBar
    from federation.client.saving import target_of

    with _connect(profile) as federation, TransferBar(Console(stderr=True)) as bar:
        if run:
            folder = federation.download_run(experiment, experiment if Path(output) == Path() else output)
            print(json.dumps({"run": str(folder)}) if as_json else str(folder))
            return
        path = target_of(output, artifact)
        fetched = federation.download(experiment, artifact, path, progress=bar)
    print(views.to_json(fetched) if as_json else str(path))


@app.command()
def report(
    experiment: ExperimentArgument,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File or folder to write; default EXPERIMENT.html.")
    ] = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a self-contained HTML page about an experiment."""
    from federation.client import views
    from federation.client.report import write_report
    from federation.client.saving import target_of

    with _connect(profile) as federation:
        details = federation.show(experiment)
    path = write_report(details, target_of(output or ".", f"{details.summary.experiment}.html"))
    print(views.to_json(details) if as_json else str(path))


@app.command()
def envoys(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """List the federation's envoys and the shards they offer."""
    from federation.client import views
    from federation.client.listings import envoys_table

    with _connect(profile) as federation:
        found = federation.envoys()
    if as_json:
        print(views.to_json(found))
        return
    Console().print(envoys_table(found))


@app.command()
def doctor(profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Check everything between this machine and its director, and say what to do."""
    import dataclasses

    from federation.client.doctor import Outcome, examine
    from federation.client.progress import printable

    marks = {
        Outcome.GOOD.value: "[green]✓[/green]",
        Outcome.WARNING.value: "[yellow]![/yellow]",
        Outcome.BAD.value: "[red]✗[/red]",
    }
    console, is_bad = Console(), False
    for finding in examine(profile):
        is_bad = is_bad or finding.outcome == Outcome.BAD.value
        if as_json:
            print(json.dumps(dataclasses.asdict(finding)), flush=True)
            continue
        console.print(
            f"{marks[finding.outcome]} {finding.check}: {printable(finding.found)}", highlight=False, soft_wrap=True
        )
        if finding.advice:
            console.print(f"  → {printable(finding.advice)}", highlight=False, soft_wrap=True)
    if is_bad:
        raise typer.Exit(Exit.CONFIGURATION)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for models, report, plot and logs.")] = Path(
        "quickstart"
    ),
    rounds: Annotated[int | None, typer.Option(help="Rounds instead of the usual ones.", min=1, max=1000)] = None,
    as_json: JsonOption = False,
) -> None:
    """Train one model across three hospitals on this machine, with real processes and real mutual TLS."""
    from federation.client.quickstart import run_quickstart

    run_quickstart(folder, rounds=rounds, as_json=as_json)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train one model together without pooling the data."""


def main() -> None:
    """Run the command; errors are one line on standard error and an exit code.

    SIGTERM is Ctrl-C with an exit code of its own: whatever stops in good order at the one does at the other, and an
    experiment that is being imported is not taken for the one that exits.
    """
    terminated: list[int] = []

    def terminate(number: int, _: object) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # why a handshake failed is in our line, not in one of gRPC's too
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # into a file on Windows, or in a bare locale, ✓ has no bytes
            stream.reconfigure(errors="replace")
    try:
        app()
    except SystemExit as ending:
        if terminated and ending.code == Exit.INTERRUPTED:
            raise SystemExit(128 + terminated[0]) from None
        raise
    except FederationError as error:
        print(f"federation: {error}", file=sys.stderr)
        raise SystemExit(int(exit_for(error))) from error
    except OSError as error:
        if not is_want_of_room(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter's end would fail on it again
        print(f"federation: cannot write {error.filename or 'what is printed'}: {error.strerror}", file=sys.stderr)
        raise SystemExit(int(Exit.FAILURE)) from error


if __name__ == "__main__":
    main()
