"""What a person sees while an experiment runs: a bar over rounds, one over the sites of the round, live metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from federation.rounds.events import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from federation.client import views


def format_metrics(metrics: dict[str, float]) -> str:
    """Return metrics as ``accuracy 0.951  loss 0.142``."""
    return "  ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))


def printable(text: str) -> str:
    """Return text of a peer as a terminal may show it: no control characters, nothing read as markup."""
    return escape("".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text))


def named_or_counted(names: Sequence[str]) -> str:
    """Return names as a column of a table has room for them: up to three by name, more by number."""
    return ", ".join(names) if len(names) <= 3 else str(len(names))


class TransferBar:
    """A bar over bytes that `Federation.submit` and `.download` call back; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> TransferBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:  # noqa: D102  # the callback; the class says it
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)  # type: ignore[arg-type]


def follow(events: Iterable[views.Event], *, rounds: int, console: Console) -> None:
    """Draw an experiment's events until they end.

    Args:
        events: from `Federation.watch`.
        rounds: rounds its plan has.
        console: where to draw; without a terminal each round is one line.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as progress:
        over_rounds = progress.add_task("rounds", total=rounds, note="")
        over_sites = progress.add_task("sites", total=None, note="")
        for event in events:
            if event.progress is not None:
                progress.update(
                    over_sites,
                    completed=event.progress.sites_done,
                    total=event.progress.sites_asked or None,
                    note=f"round {event.progress.round}: {event.progress.phase}",
                    visible=event.progress.phase != Phase.ENDED.value,  # no round, and no sites to wait for
                )
            elif event.round is not None:
                note = format_metrics(event.round.metrics or event.round.train_metrics)
                progress.update(over_rounds, completed=event.round.round, note=note)
                _print_round(event.round, rounds, console)
            elif event.kind in ("state", "assignment", "site", "artifact") and event.text:
                console.print(f"[dim]{event.kind}[/dim] {printable(_said(event))}", highlight=False)


def _said(event: views.Event) -> str:
    """Return an event's text with its site before it, without what would then be there twice."""
    if event.site and not event.text.startswith((f"{event.site}:", f"{event.site} ")):
        return f"{event.site}: {event.text}"
    state, _, reason = event.text.partition(": ")
    return state if event.kind == "state" and reason == state else event.text


def _print_round(report: views.Round, rounds: int, console: Console) -> None:
    counted = [site.site for site in report.contributions if site.outcome == "counted"]
    missing = [f"{site.site} {site.outcome}" for site in report.contributions if site.outcome != "counted"]
    missing += [f"{held.site} in quarantine" for held in report.quarantined]
    missing += [f"{site} not evaluated ({why})" for site, why in report.unevaluated.items()]
    best = "  [green]best[/green]" if report.is_best else ""
    lost = f"  [yellow]{printable(', '.join(missing))}[/yellow]" if missing else ""
    console.print(
        f"round {report.round}/{rounds}  {report.seconds:.2f} s  {len(counted)} sites  "
        f"{printable(format_metrics(report.metrics or report.train_metrics))}{best}{lost}",
        highlight=False,
    )
