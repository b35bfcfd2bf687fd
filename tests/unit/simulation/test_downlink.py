"""Compression of what the server sends, simulated: sites train from what they hold, and the model arrives as ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.errors import PlanError
from federation.simulation import Rule, Script, simulate

from .stops import stopping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federation import Experiment

    Make = Callable[..., Experiment]

CODECS = [
    "bernoulli:0.5", "rand_k:0.5", "top_k:0.5", "natural", "dithering:8,2", "qsgd:16", "terngrad", "stc:0.5",
    "natural_dithering:8,2", "eden:4", "drive", "float16", "bfloat16", "int8:64", "powersgd:1",
]  # fmt: skip


def wide(make: Make, **plan: Any) -> Experiment:
    """Return the experiment with a model of 4 KB, so that steps are smaller than it."""
    experiment = make(**plan)
    experiment.model["pad"] = np.zeros(1000, np.float32)
    return experiment


def digests(result: Any) -> list[str]:
    return [record.model_digest for record in result.records]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_arrives_where_none_does(make: Make, codec: str) -> None:
    plain = simulate(make(rounds=40), sites=3)
    packed = simulate(make(rounds=40, downlink=codec), sites=3)
    assert packed.outcome == "completed"
    # The noise of training alone moves the model by about as much from one seed to the next.
    np.testing.assert_allclose(packed.arrays["w"], plain.arrays["w"], atol=0.05)
    assert packed.arrays["seen"] == plain.arrays["seen"]  # buffers are never compressed
    # A vector travels whole by powersgd, and so does this small model by any codec: what differs is what sites hold.
    assert (digests(packed) == digests(plain)) is (codec == "powersgd:1")


def test_any_number_of_workers_gives_the_same_bits(make: Make) -> None:
    plan = {"downlink": "rand_k:0.5", "compression": "top_k:0.5", "algorithm": "fedadam"}
    alone, together = (simulate(make(**plan), sites=5, sample=3, workers=workers) for workers in (1, 2))
    assert digests(alone) == digests(together)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits_and_bytes(make: Make, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"downlink": "rand_k:0.1", "sample": 3, "sites": 5, "evaluate_every": 0}
    whole = simulate(wide(make, **plan), sites=5)
    with pytest.raises(KeyboardInterrupt):
        simulate(wide(make, **plan), sites=5, folder=tmp_path / "run", on_round=stopping(3))
    rest = simulate(wide(make, **plan), sites=5, folder=tmp_path / "run")
    assert digests(rest) == digests(whole)
    assert [record.bytes_down for record in rest.records] == [record.bytes_down for record in whole.records]


def test_a_step_goes_to_sites_that_hold_the_model_before_and_the_model_whole_to_others(make: Make) -> None:
    script = Script(rules=(Rule(do="lose", sites=("site-001",), rounds=(3, 3), back=5),), join_round={"site-002": 4})
    result = simulate(wide(make, downlink="rand_k:0.1", quorum=1, sites=2), sites=3, script=script)
    down = {(record.round, row.site): row.bytes_down for record in result.records for row in record.sites}
    # 1006 float32 and an int64. Round 1 brings the first model whole, and the step to the second to evaluate.
    whole, step = 4 * 1006 + 8, down[2, "site-000"]
    assert step < 0.2 * whole
    assert down[1, "site-000"] == whole + step
    assert down[4, "site-002"] == down[5, "site-001"] == whole + step
    assert {down[number, "site-000"] for number in (2, 3, 4, 5, 6)} == {step}


def test_a_step_that_is_no_smaller_than_the_model_is_not_sent(make: Make) -> None:
    plain, packed = simulate(make(), sites=2), simulate(make(downlink="natural"), sites=2)
    assert [record.bytes_down for record in packed.records] == [record.bytes_down for record in plain.records]


def test_records_are_of_the_servers_model_and_metrics_of_what_sites_hold(make: Make) -> None:
    plain, packed = simulate(make(rounds=1), sites=2), simulate(make(rounds=1, downlink="top_k:0.25"), sites=2)
    # Round 1 trains from the same model, so the server's model is the same; what sites hold of it is a quarter.
    assert digests(plain) == digests(packed)
    assert packed.records[0].metrics["loss"] > plain.records[0].metrics["loss"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"downlink": "dgc:0.1"}, "momentum correction is for gradients that sites send"),
        ({"downlink": "natural", "algorithm": "fedbuff"}, "asynchronous"),
        ({"downlink": "rand_k:7x"}, "rand_k:7x"),
    ],
)
def test_what_is_not_sound_is_refused_with_the_reason(make: Make, plan: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        simulate(make(**plan), sites=3)
