"""Scripts: what they read from TOML, and what they have in store for a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from federation.errors import PlanError
from federation.simulation import Rule, Script
from federation.simulation.script import Fate

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
drop = 0.25

[[rule]]
rounds = "3-7"
sites = ["site-00*"]
do = "lose"
back = 9

[[rule]]
rounds = 4
do = "delay"
seconds = 2.5

[join]
site-099 = 4
"""


def test_a_script_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text(TEXT)
    script = Script.load(path)
    assert script.rules == (
        Rule(do="drop", probability=0.25),
        Rule(do="lose", rounds=(3, 7), sites=("site-00*",), back=9),
        Rule(do="delay", rounds=(4, 4), seconds=2.5),
    )
    assert (script.joining("site-099"), script.joining("site-000")) == (4, 1)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("drop = 2.0", "give 0 to 1"),
        ("drop = 'often'", "is not a number"),
        ("[[rule]]\nrounds = 3", "expected do"),
        ("[[rule]]\ndo = 'explode'", "give one of fail, lose, delay, drop"),
        ("[[rule]]\ndo = 'delay'", "give seconds above 0"),
        ("[[rule]]\ndo = 'fail'\nprobability = 0.1", "'fail' takes no probability, only drop may"),
        ("[[rule]]\ndo = 'lose'\nseconds = 2", "'lose' takes no seconds, only delay may"),
        ("[[rule]]\ndo = 'delay'\nseconds = 2\nback = 4", "'delay' takes no back, only lose and drop may"),
        ("[[rule]]\ndo = 'fail'\nrounds = 'x'", 'give \\[3, 7\\] or "3-7"'),
        ("[[rule]]\ndo = 'fail'\nrounds = [7, 3]", "the first and the last"),
        ("[join]\nsite-001 = 'late'", "expected a round"),
        ("rule = 5", "expected tables, each under a line"),
        ("[[rule]]\ndo = 'fail'\nsites = 5", "give a name, a pattern or a list"),
        ("rules = 3", "expected drop, \\[\\[rule\\]\\] and \\[join\\]"),
        ("drop =", "cannot be read"),
    ],
)
def test_what_is_no_script_is_refused_with_the_reason(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "script.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=what):
        Script.load(path)


def test_rules_hold_for_their_rounds_and_sites_only() -> None:
    script = Script(rules=(Rule(do="fail", rounds=(2, 3), sites=("a", "b")), Rule(do="delay", seconds=1.5)))
    assert script.fate(seed=0, round_number=1, site="a") == Fate(delay_s=1.5)
    assert script.fate(seed=0, round_number=2, site="c") == Fate(delay_s=1.5)
    assert script.fate(seed=0, round_number=3, site="b").end == "fail"


def test_a_lost_site_is_back_one_round_later_at_the_earliest() -> None:
    assert Script(rules=(Rule(do="lose"),)).fate(seed=0, round_number=5, site="a").back == 6
    assert Script(rules=(Rule(do="lose", back=3),)).fate(seed=0, round_number=5, site="a").back == 6
    assert Script(rules=(Rule(do="lose", back=9),)).fate(seed=0, round_number=5, site="a").back == 9


def test_drops_are_as_frequent_as_said_and_the_same_every_time() -> None:
    script = Script.dropping(0.2)
    ends = [script.fate(seed=1, round_number=n, site="a").end for n in range(1, 2001)]
    assert ends == [script.fate(seed=1, round_number=n, site="a").end for n in range(1, 2001)]
    assert 0.2 == pytest.approx(sum(end == "lose" for end in ends) / 2000, abs=0.04)
