"""The model of time: what a round takes, and who is slow."""

from __future__ import annotations

import math
import statistics

import pytest

from federation.errors import PlanError
from federation.simulation import TimeModel


def test_a_round_is_latency_transfer_and_compute() -> None:
    times = TimeModel(seconds_per_example=0.01, up=100.0, down=1000.0, latency_s=0.5)
    taken = times.training_s(site="a", seed=0, bytes_down=2000, bytes_up=300, oracle_calls=50)
    assert taken == pytest.approx(0.5 + 2.0 + 0.5 + 3.0)
    assert times.evaluation_s(bytes_down=500) == pytest.approx(1.0)


def test_slowness_is_of_the_site_and_the_seed_with_median_one() -> None:
    times = TimeModel(speed="lognormal:0.5")
    drawn = [times.slowness(f"site-{n}", 7) for n in range(2000)]
    assert drawn == [times.slowness(f"site-{n}", 7) for n in range(2000)]
    assert drawn[0] != times.slowness("site-0", 8)
    assert statistics.median(drawn) == pytest.approx(1.0, abs=0.06)
    assert statistics.stdev(map(math.log, drawn)) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"up": 0.0}, "give more than 0"),
        ({"latency_s": -1.0}, "give a time of 0 or more"),
        ({"speed": "fast"}, 'give "constant" or "lognormal:0.5"'),
        ({"speed": "lognormal:1.2.3"}, 'give "constant" or "lognormal:0.5"'),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises(PlanError, match=what):
        TimeModel(**values)  # type: ignore[arg-type]  # wrong on purpose
