"""Ditto, FedPer, FedRep, FedBN, personalised FedAvg, Per-FedAvg and mixing."""

from __future__ import annotations

import numpy as np
import pytest

from federation.algorithms.ditto import Ditto
from federation.algorithms.fedavg import FedAvg
from federation.algorithms.fedopt import FedAdam, FedAvgM
from federation.algorithms.mixing import Mixing
from federation.algorithms.partial import FedBN, FedPer, FedRep
from federation.algorithms.per_fedavg import PerFedAvg
from federation.algorithms.personal_fedavg import PersonalFedAvg
from federation.errors import PlanError

ETA = 0.05


def _flat(vector):
    return np.concatenate([vector["bias"], vector["weight"]])


def _loss(problem, x):
    a, b = problem
    return float(np.mean((a @ x - b) ** 2))


def test_ditto_leaves_the_global_model_as_fedavgs_to_the_bit(federate, problems):
    ditto, avg = (
        federate(m, problems, learning_rate=ETA, tau=3, has_head=True) for m in (Ditto(strength=0.5), FedAvg())
    )
    for _ in range(3):
        np.testing.assert_array_equal(ditto.round(), avg.round())
        np.testing.assert_array_equal(ditto.heads, avg.heads)


def test_ditto_trains_the_personal_model_towards_the_model_received(federate, problems, grad):
    federation = federate(Ditto(strength=0.5), problems, learning_rate=ETA, tau=3)
    v = federation.x.copy()
    for _ in range(3):
        x = federation.x.copy()
        for _ in range(3):
            v = v - ETA * (grad(problems[1], v) + 0.5 * (v - x))
        federation.round()
        np.testing.assert_allclose(_flat(federation.states[1]["personal"]), v, rtol=1e-12)
    round = federation.site_round(1)
    metrics = federation.method.client().evaluate(round)
    assert metrics == pytest.approx({"loss": _loss(problems[1], federation.x), "personal_loss": _loss(problems[1], v)})
    np.testing.assert_array_equal(_flat(round.problem.parameters), federation.x)


def test_a_site_that_never_trained_has_the_global_model_as_its_personal_one(federate, problems):
    for method in (Ditto(), Mixing()):
        federation = federate(method, problems, learning_rate=ETA)
        metrics = method.client().evaluate(federation.site_round(0))
        assert metrics["personal_loss"] == metrics["loss"]


def test_fedper_trains_head_and_body_together_and_sends_the_body(federate, problems):
    per, avg = (federate(m, problems, learning_rate=ETA, tau=2, has_head=True) for m in (FedPer(), FedAvg()))
    np.testing.assert_array_equal(per.round(), avg.round())
    assert all(head.any() for head in per.heads)


def test_fedrep_moves_the_head_first_and_then_the_body_under_the_new_head(federate, problems):
    federation = federate(FedRep(head_epochs=4), problems, learning_rate=ETA, tau=2, has_head=True)
    x, n = federation.x.copy(), np.array([len(b) for _, b in problems])
    heads, bodies = np.zeros(3), []
    for i, (a, b) in enumerate(problems):
        for _ in range(4):
            heads[i] -= ETA * 2 * np.mean(a @ x + heads[i] - b)
        w = x.copy()
        for _ in range(2):
            w = w - ETA * 2 / len(b) * a.T @ (a @ w + heads[i] - b)
        bodies.append(w)
    np.testing.assert_allclose(federation.round(), np.average(bodies, axis=0, weights=n), rtol=1e-12)
    np.testing.assert_allclose(np.concatenate(federation.heads), heads, rtol=1e-12)


def test_fedbn_refuses_a_site_whose_batch_norm_is_federated(federate, problems):
    federation = federate(FedBN(), problems, learning_rate=ETA)
    round = federation.site_round(0)
    federation.method.client().work(round)
    np.testing.assert_array_equal(list(round.sent), ["delta"])
    other = federation.site_round(0)
    other.problem.batch_norm = frozenset({"weight"})
    with pytest.raises(PlanError, match="keeps batch normalisation at each site: add"):
        federation.method.client().work(other)


def test_personal_fedavg_is_momentum_first_and_then_reptile_with_adam(federate, problems):
    method = PersonalFedAvg(stage_rounds=2, reptile_k=1, beta=0.5, reptile_rate=0.01)
    federation = federate(method, problems, learning_rate=ETA, tau=4)
    momentum = federate(FedAvgM(beta=0.5), problems, learning_rate=ETA, tau=4)
    for _ in range(2):
        np.testing.assert_array_equal(federation.round(), momentum.round())
    adam = federate(FedAdam(), problems, learning_rate=ETA, tau=1, server_learning_rate=0.01, start=federation.x)
    for _ in range(3):
        np.testing.assert_allclose(federation.round(), adam.round(), rtol=1e-13)


def test_personal_fedavgs_second_stage_follows_the_plans_server_schedule(federate, problems, grad):
    method = PersonalFedAvg(stage_rounds=1, reptile_k=1, reptile_rate=0.01)
    federation = federate(method, problems, learning_rate=ETA, rounds=4, server_schedule="step:2,0.5")
    x, m, v = federation.round().copy(), np.zeros(5), federation.slots["variance"].copy()
    for factor in (1.0, 0.5, 0.5):
        before = x
        x = federation.round().copy()
        changes = [-ETA * grad(problem, before) for problem in problems]
        delta = np.average(changes, axis=0, weights=[len(b) for _, b in problems])
        m, v = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
        np.testing.assert_allclose(x, before + factor * 0.01 * m / (np.sqrt(v) + 1e-3), rtol=1e-10)


def test_personal_fedavg_reports_the_model_before_and_after_personal_training(federate, problems, grad):
    federation = federate(PersonalFedAvg(personal_epochs=3), problems, learning_rate=ETA)
    round = federation.site_round(2)
    w = federation.x.copy()
    for _ in range(3):
        w = w - ETA * grad(problems[2], w)
    metrics = federation.method.client().evaluate(round)
    assert metrics == pytest.approx({"loss": _loss(problems[2], federation.x), "personal_loss": _loss(problems[2], w)})
    np.testing.assert_array_equal(_flat(round.problem.parameters), federation.x)


@pytest.mark.parametrize("variant", ["first_order", "hessian_free"])
def test_per_fedavg_descends_the_objective_after_one_personal_step(federate, problems, grad, variant):
    federation = federate(PerFedAvg(a=0.1, variant=variant), problems, learning_rate=ETA, tau=2)
    x, n = federation.x.copy(), np.array([len(b) for _, b in problems])
    local = []
    for problem in problems:
        a, b = problem
        hessian = 2 / len(b) * a.T @ a if variant == "hessian_free" else np.zeros((5, 5))
        w = x.copy()
        for _ in range(2):
            v = grad(problem, w - 0.1 * grad(problem, w))
            w = w - ETA * (np.eye(5) - 0.1 * hessian) @ v
        local.append(w)
    # The difference of gradients is exact for a quadratic, up to cancellation.
    np.testing.assert_allclose(federation.round(), np.average(local, axis=0, weights=n), rtol=1e-9)


def test_per_fedavg_reports_the_model_after_one_step_on_all_the_sites_data(federate, problems, grad):
    federation = federate(PerFedAvg(a=0.1), problems, learning_rate=ETA)
    round = federation.site_round(0)
    metrics = federation.method.client().evaluate(round)
    moved = federation.x - 0.1 * grad(problems[0], federation.x)
    assert metrics["personal_loss"] == pytest.approx(_loss(problems[0], moved))
    np.testing.assert_array_equal(_flat(round.problem.parameters), federation.x)


def test_mixing_starts_between_its_own_model_and_the_federations(federate, problems, grad):
    federation = federate(Mixing(beta=0.25), problems, learning_rate=ETA)
    own, n = [None] * 3, np.array([len(b) for _, b in problems])
    for _ in range(3):
        x = federation.x.copy()
        for i, problem in enumerate(problems):
            start = x if own[i] is None else 0.25 * own[i] + 0.75 * x
            own[i] = start - ETA * grad(problem, start)
        np.testing.assert_allclose(federation.round(), np.average(own, axis=0, weights=n), rtol=1e-12)
    metrics = federation.method.client().evaluate(federation.site_round(1))
    assert metrics["personal_loss"] == pytest.approx(_loss(problems[1], 0.25 * own[1] + 0.75 * federation.x))


def test_mixing_with_beta_0_is_fedavg_to_the_bit(federate, problems):
    mixing, avg = (federate(m, problems, learning_rate=ETA, tau=2) for m in (Mixing(beta=0), FedAvg()))
    for _ in range(3):
        np.testing.assert_array_equal(mixing.round(), avg.round())
