"""Settings on a command line, and the grid that several values of them span. Pure.

1. ``--set NAME=VALUE`` gives one field of the plan a value: JSON where it is JSON (``0.1``, ``true``, ``null``), else
   text. ``options.NAME`` is one option of the algorithm, the others stay; ``lr`` is short for ``learning_rate``.
2. In a sweep, commas part values; where a value holds a comma itself (``dithering:8,2``), semicolons part them.
3. The grid is every combination of values, and of seeds, the last setting fastest. A cell is named by a digest of what
   it sets, so that the same cell finds its folder again whatever else is swept.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHORT = {"lr": "learning_rate", "server_lr": "server_learning_rate"}
_DIGEST_CHARACTERS = 16
MAX_CELLS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
        settings: plan field and value, as text, in the order they were given.
        seed: of its plan; None: the plan's own.
    """

    settings: tuple[tuple[str, str], ...]
    seed: int | None

    def arguments(self) -> list[str]:
        """Return it as arguments of ``federation simulate``."""
        sets = [word for name, value in self.settings for word in ("--set", f"{name}={value}")]
        return sets + ([] if self.seed is None else ["--seed", str(self.seed)])

    def digest(self, experiment: str, shared: Sequence[str]) -> str:
        """Return the name of its folder: of the experiment, the arguments all cells share, and its own."""
        document = json.dumps([experiment, list(shared), sorted(self.settings), self.seed])
        return hashlib.sha256(document.encode()).hexdigest()[:_DIGEST_CHARACTERS]

    def describe(self) -> str:
        """Return one line for people."""
        words = [f"{name}={value}" for name, value in self.settings]
        return " ".join([*words, *([] if self.seed is None else [f"seed={self.seed}"])]) or "the plan as it is"


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``.

    Raises:
        ConfigurationError: it is not of that form.
    """
    name, value = _parted(text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Return several ``NAME=VALUE`` as what `federation.simulation.simulate` takes as changes of a plan.

    Raises:
        ConfigurationError: one is not of that form.
    """
    return dict(map(parse_setting, texts))


def parse_values(text: str) -> tuple[str, list[str]]:
    """Read ``NAME=A,B,C`` as a name and its values, as text.

    Raises:
        ConfigurationError: it is not of that form, or a value is empty or there twice.
    """
    name, value = _parted(text)
    values = [part.strip() for part in value.split(";" if ";" in value else ",")]
    if not all(values) or len(set(values)) < len(values):
        raise ConfigurationError(f"--set {text}: a value is empty or there twice; give NAME=A,B,C")
    return name, values


def parse_seeds(text: str) -> list[int]:
    """Read ``0:10`` (0 to 9), ``3`` or ``1,5,7``.

    Raises:
        ConfigurationError: it is none of these.
    """
    try:
        if ":" in text:
            first, last = (int(part) for part in text.split(":"))
            seeds = list(range(first, last))
        else:
            seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"seeds are {text!r}; give 0:10 for 0 to 9, or 1,5,7")
    return seeds


def make_grid(settings: Sequence[tuple[str, Sequence[str]]], seeds: Sequence[int] | None = None) -> list[Cell]:
    """Return every combination, in order.

    Raises:
        ConfigurationError: a name is there twice, or there are more than `MAX_CELLS` cells.
    """
    names = [name for name, _ in settings]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigurationError(f"{', '.join(twice)} is set twice; give all its values in one --set")
    count = len(seeds or [0])
    for _, values in settings:
        count *= len(values)
    if count > MAX_CELLS:
        raise ConfigurationError(f"the grid has {count} cells, at most {MAX_CELLS} are run; give fewer values")
    return [
        Cell(settings=tuple(zip(names, values, strict=True)), seed=seed)
        for values in itertools.product(*(values for _, values in settings))
        for seed in (seeds if seeds is not None else [None])
    ]


def _parted(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name.replace("_", "a").replace(".", "a").isalnum():
        raise ConfigurationError(f"--set {text}: give NAME=VALUE, such as learning_rate=0.1")
    return _SHORT.get(name, name), value.strip()
