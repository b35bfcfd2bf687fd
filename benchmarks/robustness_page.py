"""The robustness table as a document: ``docs/robustness.md``, of the lines that `benchmarks.robustness` has written.

Per number of hostile sites and partition a table of defences by attacks: mean ± deviation over the seeds in per cent,
the best of each attack in bold, what loses `FALL` points or more against the undefended mean of a peaceful federation
marked as fallen.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.robustness import (
    ATTACKS,
    BATCH,
    DEFENCES,
    HIDDEN,
    HOSTILE,
    LEARNING_RATE,
    NONE,
    PARTITIONS,
    ROUNDS,
    SITES,
    TOLD,
    Cell,
    Outcome,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FALL = 20.0
CLOSE = 0.5
"""Points of accuracy."""
_FALLEN = "✗"
_EARLY = "†"
_BACKDOOR = next(attack for attack in ATTACKS if attack.startswith("backdoor"))


class Figures:
    """What the file has, by defence, attack, f and partition: the outcomes of all seeds.

    Args:
        found: every cell.
    """

    def __init__(self, found: Mapping[Cell, Outcome]) -> None:
        self._found: dict[tuple[str, str, int, str], list[Outcome]] = {}
        for cell in sorted(cell for cell in found if cell.rounds == ROUNDS):
            self._found.setdefault((cell.defence, cell.attack, cell.hostile, cell.partition), []).append(found[cell])
        self.seeds = max((len(outcomes) for outcomes in self._found.values()), default=0)

    @property
    def seeds_said(self) -> str:
        """How many seeds the cells have, in words."""
        fewest = min((len(outcomes) for outcomes in self._found.values()), default=0)
        if fewest == self.seeds:
            return f"{self.seeds} seeds"
        return f"up to {self.seeds} seeds (none: one seed)"

    def outcomes(self, defence: str, attack: str, hostile: int, partition: str) -> list[Outcome]:
        """Return the outcomes of a cell's seeds; none if it was not run."""
        return self._found.get((defence, attack, hostile, partition), [])

    def accuracy(self, defence: str, attack: str, hostile: int, partition: str) -> float | None:
        """Return the mean over the seeds, per cent; None: not run, or refused."""
        values = [row.accuracy for row in self.outcomes(defence, attack, hostile, partition)]
        known = [100 * value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def worst(self, defence: str, hostile: int, partition: str) -> float | None:
        """Return the lowest mean over all attacks; None if one is missing."""
        values = [self.accuracy(defence, attack, hostile, partition) for attack in ATTACKS]
        known = [value for value in values if value is not None]
        return min(known) if len(known) == len(values) else None

    def has(self, hostile: int, partition: str) -> bool:
        """Tell whether anything of a table was run."""
        return any(key[2:] == (hostile, partition) for key in self._found)


def page_of(found: Mapping[Cell, Outcome]) -> str:
    """Return the document."""
    figures = Figures(found)
    parts = [_head(figures), _peace(figures)]
    for hostile in HOSTILE:
        for partition, title in PARTITIONS.items():
            if figures.has(hostile, partition):
                parts.append(_war(figures, hostile, partition, title))
    parts.append(_backdoors(figures))
    parts.append(_refusals(figures))
    return "\n".join(parts)


def _head(figures: Figures) -> str:
    return f"""# Rules against attacks

Accuracy on digits in per cent, mean ± standard deviation over {figures.seeds_said}, of the model that a
federation of {SITES} sites has after {ROUNDS} rounds, of which f sites are hostile. What to make of it:
[which rule do I need](which-rule.md). Made by

```bash
python -m benchmarks robustness --full --page
```

- The sites share 1437 digits; a network 64-{HIDDEN}-10, one local epoch of SGD at {LEARNING_RATE:g} in batches
  of {BATCH} a round. All 360 validation digits measure the last model. Guessing gives 10 %.
- Hostile sites see every honest update of the round before they send theirs, and act as one; *optimised* means that
  their factor is searched for anew each round against the rule in force. No real site knows as much.
- Every rule is told the true f, and {TOLD} where nobody is hostile; options otherwise by default. `monna` and
  `fltrust` trust one honest site. `momentum` is the method `site_momentum` with β = 0.9 instead of FedAvg.
- **Bold**: best under this attack, or within {CLOSE:g} points of it. {_FALLEN}: fallen, {FALL:g} points or more below
  the mean rule in peace. {_EARLY}: a run ended early, because its next model was not finite. n/a: the plan
  is [refused](#what-is-refused-and-why). –: not measured yet, or, as worst, not under every attack.
- Infinity and NaN are not in the tables: whatever the rule, they are refused on arrival.
- The mean weighs sites by their examples, and hostile ones claim no more than they have; behind `arc` all weigh alike.
"""


def _peace(figures: Figures) -> str:
    rows = []
    for defence in DEFENCES:
        cells = [_plain(figures.outcomes(defence, NONE, 0, partition)) for partition in PARTITIONS]
        rows.append([f"`{defence}`", *cells])
    return "## Nobody is hostile: the price of the rule\n\n" + _table(["defence", *PARTITIONS.values()], rows)


def _war(figures: Figures, hostile: int, partition: str, title: str) -> str:
    peace = figures.accuracy("mean", NONE, 0, partition) or 0.0
    columns = list(ATTACKS)
    best = {
        attack: max((figures.accuracy(each, attack, hostile, partition) or 0.0) for each in DEFENCES)
        for attack in columns
    }
    best_worst = max((figures.worst(each, hostile, partition) or 0.0) for each in DEFENCES)
    rows = []
    for defence in DEFENCES:
        row = [f"`{defence}`"]
        for attack in columns:
            outcomes = figures.outcomes(defence, attack, hostile, partition)
            row.append(
                _marked(_plain(outcomes), figures.accuracy(defence, attack, hostile, partition), best[attack], peace)
            )
        worst = figures.worst(defence, hostile, partition)
        row.append(_marked("–" if worst is None else f"{worst:.1f}", worst, best_worst, peace))
        rows.append(row)
    head = ["defence", *ATTACKS.values(), "worst"]
    return f"## {hostile} of {SITES} hostile, {title}\n\n" + _table(head, rows)


def _backdoors(figures: Figures) -> str:
    columns = [(hostile, partition) for hostile in HOSTILE for partition in PARTITIONS]
    rows = []
    for defence in DEFENCES:
        row = [f"`{defence}`"]
        for hostile, partition in columns:
            row.append(_success(figures.outcomes(defence, _BACKDOOR, hostile, partition)))
        rows.append(row)
    head = ["defence", *(f"f = {hostile}, {PARTITIONS[partition]}" for hostile, partition in columns)]
    return (
        "## The backdoor: how often its trigger works\n\n"
        "Share of validation digits of other classes that the last model takes for the attacker's when the trigger is\n"
        "on them, per cent; without a backdoor it is a few. Accuracy, above, does not show it.\n\n" + _table(head, rows)
    )


def _refusals(figures: Figures) -> str:
    lines: list[str] = []
    for defence in DEFENCES:
        for hostile in (0, *HOSTILE):
            attack = NONE if hostile == 0 else next(iter(ATTACKS))
            reasons = {
                row.reason.split(". ")[0]
                for partition in PARTITIONS
                for row in figures.outcomes(defence, attack, hostile, partition)
                if row.accuracy is None
            }
            lines += [f"- `{defence}`, f = {hostile}: {reason}." for reason in sorted(reasons)]
    if not lines:
        return ""
    return "## What is refused, and why\n\n" + "\n".join(lines) + "\n"


def _plain(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "–"
    if any(row.accuracy is None for row in outcomes):
        return "n/a"
    text = _spread([100 * row.accuracy for row in outcomes if row.accuracy is not None])
    return text + (f" {_EARLY}" if any(row.reason for row in outcomes) else "")


def _success(outcomes: Sequence[Outcome]) -> str:
    known = [100 * row.success for row in outcomes if row.success is not None]
    if known:
        return _spread(known)
    return "n/a" if any(row.accuracy is None for row in outcomes) else "–"


def _marked(text: str, value: float | None, best: float, peace: float) -> str:
    if value is None:
        return text
    if value >= best - CLOSE:
        text = f"**{text}**"
    return f"{text} {_FALLEN}" if value <= peace - FALL else text


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
