"""SCAFFOLD against brute force: both options, sampling, compression, a lost update, a late joiner."""

from __future__ import annotations

import numpy as np
import pytest

from federation.algorithms import OptimizerChoice
from federation.algorithms.fedavg import FedAvg
from federation.algorithms.scaffold import Scaffold
from federation.errors import PlanError

ETA = 0.05


def _train(grad, problem, x, correction, tau):
    y = x.copy()
    for _ in range(tau):
        y = y - ETA * (grad(problem, y) + correction)
    return y


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("tau", [1, 4])
def test_equals_algorithm_1_of_the_paper_under_sampling(federate, problems, grad, option, tau):
    federation = federate(Scaffold(option=option), problems, tau=tau, learning_rate=ETA, server_learning_rate=0.8)
    x, c, c_i = federation.x.copy(), np.zeros(5), np.zeros((3, 5))
    for asked in ([0, 1, 2], [0, 2], [1], [0, 1], [0, 1, 2]):
        change, u = np.zeros(5), np.zeros(5)
        for i in asked:
            y = _train(grad, problems[i], x, c - c_i[i], tau)
            new = grad(problems[i], x) if option == 1 else c_i[i] - c + (x - y) / (tau * ETA)
            change, u, c_i[i] = change + (y - x), u + (new - c_i[i]), new
        x, c = x + 0.8 / len(asked) * change, c + u / 3
        np.testing.assert_allclose(federation.round(asked), x, rtol=1e-11)
        np.testing.assert_allclose(federation.slots["control"], c, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(c, c_i.mean(axis=0), atol=1e-14)


def test_the_first_round_is_uniform_fedavg(federate, problems):
    method, plan = Scaffold(), {"tau": 3, "learning_rate": ETA}
    expected = federate(FedAvg(), problems, weighting="uniform", **plan).round()
    np.testing.assert_array_equal(federate(method, problems, **plan).round(), expected)


def test_both_ends_damp_compressed_control_changes_alike(federate, problems):
    federation = federate(Scaffold(), problems, learning_rate=ETA, compression="rand_k:2")
    for asked in ([0, 1, 2], [1, 2], [0, 1, 2]):
        federation.round(asked)
        c_i = [np.concatenate(list(s["control"].values())) if s else np.zeros(5) for s in federation.states]
        np.testing.assert_allclose(federation.slots["control"], np.mean(c_i, axis=0), atol=1e-15)


def test_converges_where_fedavg_with_local_steps_drifts(federate, problems, solve):
    plan = {"tau": 5, "learning_rate": ETA}
    drifting, corrected = (federate(m, problems, weighting="uniform", **plan) for m in (FedAvg(), Scaffold()))
    for _ in range(300):
        drifting.round(), corrected.round()
    assert np.linalg.norm(drifting.x - solve(problems)) > 1e-3
    np.testing.assert_allclose(corrected.x, solve(problems), atol=1e-10)


def test_an_update_that_does_not_count_leaves_both_ends_as_they_were(federate, problems):
    federation = federate(Scaffold(), problems, learning_rate=ETA)
    federation.round()
    kept = federation.states[1]["control"].copy()
    federation.round(lost=(1,))
    np.testing.assert_array_equal(federation.states[1]["control"]["weight"], kept["weight"])
    c_i = [np.concatenate(list(s["control"].values())) for s in federation.states]
    np.testing.assert_allclose(federation.slots["control"], np.mean(c_i, axis=0), atol=1e-15)


def test_a_late_joiner_has_no_control_and_the_servers_is_rescaled(federate, problems):
    federation = federate(Scaffold(), problems[:2], learning_rate=ETA)
    federation.round()
    federation.problems.append(problems[2])
    federation.states.append({})
    federation.heads.append(None)
    federation.round([0, 1])
    c_i = [np.concatenate(list(s["control"].values())) for s in federation.states[:2]]
    np.testing.assert_allclose(federation.slots["control"], np.sum(c_i, axis=0) / 3, atol=1e-15)


def test_option_2_refuses_anything_but_plain_sgd(federate, problems):
    federation = federate(Scaffold(option=2), problems, learning_rate=ETA)
    round = federation.site_round(0)
    round.problem.optimizer = OptimizerChoice(name="sgd", options={"momentum": 0.9})
    with pytest.raises(PlanError, match=r"option 2 needs plain SGD; the task uses sgd, momentum=0.9: set option = 1"):
        federation.method.client().work(round)


def test_option_2_leaves_the_control_alone_where_the_schedule_ends_at_zero(federate, problems):
    federation = federate(Scaffold(option=2), problems, learning_rate=ETA)
    federation.round()
    round = federation.site_round(0)
    before = round.state["control"].copy()
    round.problem.eta = 0.0
    federation.method.client().work(round)
    np.testing.assert_array_equal(round.state["control"]["weight"], before["weight"])
