"""What every built-in method owes to those who run it: site, server, simulation, documentation."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.algorithms import Algorithm, ServerRound, ServerTile, load_algorithm
from federation.algorithms.registry import BUILT_IN
from federation.errors import PlanError
from federation.names import check_name
from federation.plan import Plan

_SOURCE = Path(__file__).parents[1] / "unit" / "algorithms" / "conftest.py"
_spec = importlib.util.spec_from_file_location("algorithm_harness", _SOURCE)
assert _spec is not None
assert _spec.loader is not None
harness = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = harness  # its dataclasses look their module up
_spec.loader.exec_module(harness)


@pytest.fixture(params=sorted(BUILT_IN))
def method(request: pytest.FixtureRequest) -> Algorithm:
    # Fisher information of these problems is large; a penalty of 1 times it would need a smaller local step.
    options = {"fedcurv": {"strength": 1e-3}}
    return BUILT_IN[request.param](**options.get(request.param, {}))


def _federation(method: Algorithm, **options: Any) -> Any:
    has_head = method.name in ("fedper", "fedrep")
    return harness.Federation(method, harness.draw_problems(), learning_rate=0.02, tau=2, has_head=has_head, **options)


def _run(federation: Any, rounds: int = 3) -> np.ndarray:
    for number in range(rounds):
        if federation.method.mode == "buffer" and federation.method.buffer_size(federation.plan) == 1:
            federation.round([number % 3])
        else:
            federation.round()
    return federation.x


def test_says_what_it_is_for_its_formula_an_example_and_its_options(method):
    text = inspect.getdoc(type(method)) or ""
    assert method.title
    assert method.source
    assert "$$" in text
    assert "Example:" in text
    for option in type(method).model_fields:
        assert re.search(rf"^\s+{option}: \S", text, re.MULTILINE), f"option {option} is not documented"


def test_its_example_is_a_plan_it_accepts(method):
    (example,) = re.findall(r"``(Plan\(.*?\))``", inspect.getdoc(type(method)) or "", re.DOTALL)
    plan = eval(example, {"Plan": Plan})  # noqa: S307 - our own docstring
    assert plan.algorithm == method.name
    assert type(load_algorithm(plan)) is type(method)


def test_names_are_names_and_options_round_trip_and_cannot_change(method):
    check_name(method.name.replace("_", "-"), "algorithm")
    assert load_algorithm(Plan(algorithm=method.name, options=method.options())) == method
    assert pickle.loads(pickle.dumps(method)) == method  # noqa: S301 - our own bytes
    with pytest.raises(PlanError):
        type(method)(no_such_option=1)
    for option in type(method).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(method, option, 1)


def test_what_it_broadcasts_and_rescales_are_slots_and_payload_names_are_valid(method):
    assert set(method.broadcast) | method.rescaled <= set(method.slots)
    uplink, downlink = method.payload_rows(Plan(algorithm=method.name))
    assert [row.name for row in downlink] == list(method.broadcast)
    assert [row.name for row in uplink] == [*method.vectors, *(["scalars"] if method.scalars else [])]


def test_sites_send_exactly_what_was_announced_and_keep_only_what_was_named(method):
    federation = _federation(method)
    _run(federation, 2)
    federation.number += 1
    round = federation.site_round(0)
    before = {name: array.copy() for name, array in round.start.items()}
    method.client().work(round)
    assert set(round.sent) == {"delta", *method.vectors}
    assert set(round.scalars) == set(method.scalars)
    assert set(round.state) <= set(method.site_state)
    for name, array in round.start.items():
        np.testing.assert_array_equal(array, before[name])


def test_halves_keep_nothing_so_fresh_ones_and_used_ones_give_equal_bits(method):
    used, fresh = _federation(method), _federation(method)
    half = method.client(), method.server()

    class Resident(type(method)):  # one pair of halves for all sites and rounds
        def client(self):
            return half[0]

        def server(self):
            return half[1]

    used.method = Resident.model_construct(**method.options())
    np.testing.assert_array_equal(_run(used), _run(fresh))


def test_the_server_step_is_the_same_however_the_vector_is_cut(method):
    np.testing.assert_array_equal(_run(_federation(method, tile=1)), _run(_federation(method, tile=100)))


def test_the_model_moves_and_towards_less_loss(method):
    federation = _federation(method)
    start = federation.x.copy()
    loss = [np.mean([np.mean((a @ x - b) ** 2) for a, b in federation.problems]) for x in (start, _run(federation, 8))]
    assert loss[1] < loss[0]


def test_when_nobody_moves_and_nothing_is_kept_the_model_stays(method):
    """Zero changes in the first round leave the model as it is, to the bit."""
    federation = _federation(method)
    rounds = {0: federation.site_round(0)}
    zero = rounds[0].start.zeros_like()
    rounds[0].sent = {name: zero.copy() for name in ("delta", *method.vectors)}
    rounds[0].scalars = dict.fromkeys(method.scalars, 1.0)
    federation.number = 1
    before = federation.x.copy()
    federation.combine(rounds, connected=3)
    np.testing.assert_array_equal(federation.x, before)


def test_evaluations_report_the_announced_metrics_and_leave_the_model_alone(method):
    federation = _federation(method)
    _run(federation, 1)
    round = federation.site_round(0)
    metrics = method.client().evaluate(round)
    assert set(metrics) == set(method.metric_names(("loss",)))
    np.testing.assert_array_equal(harness.as_flat(round.problem.parameters), federation.x)


def test_weights_are_finite_and_above_zero_and_name_every_vector(method):
    federation = _federation(method)
    _run(federation, 1)
    plan = federation.plan
    sites = federation.facts
    weights = method.server().weights(ServerRound(number=1, plan=plan, sites=sites, total=3, learning_rate=1.0))
    assert set(weights) == {"delta", *method.vectors}
    for each in weights.values():
        assert len(each) == len(sites)
        assert all(np.isfinite(each))
        assert min(each) > 0


def test_steps_write_in_place(method):
    server = method.server()
    federation = _federation(method)
    _run(federation, 1)
    round = ServerRound(number=2, plan=federation.plan, sites=federation.facts, total=3, learning_rate=0.5)
    x, state = np.ones(4), {slot: np.ones(4) for slot in method.slots}
    tile = ServerTile(x=x, mean={n: np.full(4, 0.1) for n in ("delta", *method.vectors)}, state=state, start=0)
    server.step(tile, server.begin(round))
    assert tile.x is x
    assert not (x == 1).all()
