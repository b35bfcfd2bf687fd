"""What goes wrong in a simulated federation, written down: who fails, is lost, is slow or joins late, and when. Pure.

A script is a list of rules; every rule that matches a round and a site applies. In TOML:

    drop = 0.1                      # each asked site is lost with this probability, each round

    [[rule]]
    rounds = [3, 7]                 # or "3-7"; all if left out
    sites = ["site-00*"]            # shell patterns; all if left out
    do = "lose"                     # fail, lose, delay or drop
    back = 5                        # round at which a lost site is ready again; the next one if left out

    [join]
    site-099 = 4                    # this site is first ready at round 4

Rules:

1. *fail*: the site answers that it could not train; it may be asked again next round.
2. *lose*: the site does not answer and is disconnected until round `back`.
3. *delay*: its answer comes `seconds` later, in simulated time.
4. *drop*: as *lose*, with `probability`, drawn from the stream (seed, round, site, "script").
"""

from __future__ import annotations

import fnmatch
import hashlib
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from federation.errors import PlanError
from federation.rounds.randomness import stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Deed = Literal["fail", "lose", "delay", "drop"]
_KEYS = frozenset({"rounds", "sites", "do", "seconds", "probability", "back"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of a script.

    Attributes:
        do: what happens.
        rounds: first and last round it holds for, both included; None: all.
        sites: shell patterns of site names.
        seconds: of a delay, simulated seconds.
        probability: of a drop, 0 to 1.
        back: round at which a lost site is ready again; None: the one after.

    Raises:
        PlanError: a number is out of range, or missing for what it does.
    """

    do: Deed
    rounds: tuple[int, int] | None = None
    sites: tuple[str, ...] = ("*",)
    seconds: float = 0.0
    probability: float = 1.0
    back: int | None = None

    def __post_init__(self) -> None:
        if self.do not in get_args(Deed):
            raise PlanError(f"a script's rule does {self.do!r}; give one of {', '.join(get_args(Deed))}")
        if self.do == "delay" and not self.seconds > 0:
            raise PlanError(f"a delay of {self.seconds} seconds; give seconds above 0")
        if not 0 <= self.probability <= 1:
            raise PlanError(f"probability is {self.probability}; give 0 to 1")
        if self.rounds is not None and not 1 <= self.rounds[0] <= self.rounds[1]:
            raise PlanError(f"rounds are {self.rounds}; give the first and the last, from 1")
        for field_name, is_given, deeds in (
            ("seconds", self.seconds != 0, ("delay",)),
            ("probability", self.probability != 1, ("drop",)),
            ("back", self.back is not None, ("lose", "drop")),
        ):
            if is_given and self.do not in deeds:
                raise PlanError(
                    f"a rule that does {self.do!r} takes no {field_name}, only {' and '.join(deeds)} may have it"
                )

    def applies(self, round_number: int, site: str) -> bool:
        """Tell whether it holds for a site in a round."""
        if self.rounds is not None and not self.rounds[0] <= round_number <= self.rounds[1]:
            return False
        return any(fnmatch.fnmatchcase(site, pattern) for pattern in self.sites)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What a script has in store for one site in one round: ``""``, ``"fail"`` or ``"lose"``, a delay, a return."""

    end: Literal["", "fail", "lose"] = ""
    delay_s: float = 0.0
    back: int = 0


_UNTOUCHED = Fate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Rules, and the round at which late sites join.

    Attributes:
        rules: in order; the first that ends a site's round says how, delays add up.
        join_round: round before which a site is first ready, from 2; sites not named are there from the start.
    """

    rules: tuple[Rule, ...] = ()
    join_round: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read a script from TOML.

        Raises:
            PlanError: it cannot be read or says something that is no rule; the text says where.
        """
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise PlanError(f"the script {path} cannot be read: {error}") from error
        unknown = sorted(document.keys() - {"drop", "rule", "join"})
        if unknown:
            raise PlanError(f"the script {path} has {unknown[0]!r}; expected drop, [[rule]] and [join]")
        rules = []
        if "drop" in document:
            rules.append(Rule(do="drop", probability=_number(document["drop"], f"{path}: drop")))
        rows = document.get("rule", [])
        if not isinstance(rows, list):
            raise PlanError(f"{path}: rule is {rows!r}; expected tables, each under a line [[rule]]")
        rules += [_rule(row, f"{path}: rule {place}") for place, row in enumerate(rows, start=1)]
        joins = document.get("join", {})
        if not isinstance(joins, dict) or any(not isinstance(value, int) or value < 1 for value in joins.values()):
            raise PlanError(f"{path}: join gives {joins!r}; expected a round, from 1, per site name")
        return cls(rules=tuple(rules), join_round=joins)

    @classmethod
    def dropping(cls, probability: float) -> Script:
        """Return a script in which each asked site is lost with a probability, for one round."""
        return cls(rules=(Rule(do="drop", probability=probability),))

    def fate(self, *, seed: int, round_number: int, site: str) -> Fate:
        """Return what happens to a site that is asked to train in a round: the same in every run."""
        rules = [rule for rule in self.rules if rule.applies(round_number, site)]
        if not rules:
            return _UNTOUCHED
        rng = stream(seed, round_number, site, "script")
        end: Literal["", "fail", "lose"] = ""
        delay, back = 0.0, 0
        for rule in rules:
            if rule.do == "delay":
                delay += rule.seconds
            elif rule.do == "drop" and rng.random() >= rule.probability:
                continue
            elif not end:
                end = "fail" if rule.do == "fail" else "lose"
                back = max(rule.back or round_number + 1, round_number + 1)
        return Fate(end=end, delay_s=delay, back=back)

    def __str__(self) -> str:
        """Return a short name, another for each script: ``drop 0.1``, or a digest; empty if nothing goes wrong."""
        if self == Script():
            return ""
        if len(self.rules) == 1 and self == Script.dropping(self.rules[0].probability):
            return f"drop {self.rules[0].probability:g}"
        return hashlib.sha256(repr((self.rules, sorted(self.join_round.items()))).encode()).hexdigest()[:8]

    def joining(self, site: str) -> int:
        """Return the round before which a site is first ready; 1: from the start."""
        return self.join_round.get(site, 1)


def _rule(row: Any, where: str) -> Rule:
    if not isinstance(row, dict) or "do" not in row or row.keys() - _KEYS:
        raise PlanError(f"{where} is {row!r}; expected do, and of {', '.join(sorted(_KEYS - {'do'}))} what it needs")
    sites = row.get("sites", ["*"])
    if not isinstance(sites, str | list):
        raise PlanError(f"{where}: sites is {sites!r}; give a name, a pattern or a list of them")
    return Rule(
        do=cast("Deed", row["do"]),
        rounds=_rounds(row["rounds"], where) if "rounds" in row else None,
        sites=(sites,) if isinstance(sites, str) else tuple(map(str, sites)),
        seconds=_number(row.get("seconds", 0.0), where),
        probability=_number(row.get("probability", 1.0), where),
        back=int(_number(row["back"], where)) if "back" in row else None,
    )


def _rounds(value: Any, where: str) -> tuple[int, int]:
    if isinstance(value, str):
        first, _, last = value.partition("-")
        value = [first, last or first]
    elif isinstance(value, int):
        value = [value, value]
    try:
        begin, end = (int(part) for part in value)
    except (TypeError, ValueError) as error:
        raise PlanError(f'{where}: rounds is {value!r}; give [3, 7] or "3-7"') from error
    return begin, end


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{where}: {value!r} is not a number")
    return float(value)
