"""FedProx, FedDyn, FedCurv and fixed time against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from federation.algorithms.fedavg import FedAvg
from federation.algorithms.fedcurv import FedCurv
from federation.algorithms.feddyn import FedDyn
from federation.algorithms.fedprox import FedProx
from federation.algorithms.site_momentum import SiteMomentum

ETA = 0.05


def _flat(vector):
    return np.concatenate([vector["bias"], vector["weight"]])


def test_fedprox_adds_the_proximal_gradient_at_the_live_parameters(federate, problems, grad):
    federation = federate(FedProx(mu=0.7), problems, learning_rate=ETA, tau=4)
    x, n = federation.x.copy(), np.array([len(b) for _, b in problems])
    for _ in range(3):
        local = []
        for problem in problems:
            w = x.copy()
            for _ in range(4):
                w = w - ETA * (grad(problem, w) + 0.7 * (w - x))
            local.append(w)
        x = np.average(local, axis=0, weights=n)
        np.testing.assert_allclose(federation.round(), x, rtol=1e-12)


def test_fedprox_without_mu_and_gamma_is_fedavg_to_the_bit(federate, problems):
    prox, avg = (federate(m, problems, learning_rate=ETA, tau=3) for m in (FedProx(mu=0), FedAvg()))
    for _ in range(3):
        np.testing.assert_array_equal(prox.round(), avg.round())


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_fedprox_stops_at_the_first_gamma_inexact_pass(federate, problems, grad, mu):
    federation = federate(FedProx(mu=mu, gamma=0.5), problems, learning_rate=ETA, tau=100)
    x = federation.x.copy()
    enough = 0.5 * np.linalg.norm(grad(problems[0], x))
    w, taken = x.copy(), 0
    while True:
        h = grad(problems[0], w) + mu * (w - x)
        w, taken = w - ETA * h, taken + 1
        if np.linalg.norm(h) <= enough:
            break
    assert 2 < taken < 100
    round = federation.site_round(0)
    federation.method.client().work(round)
    np.testing.assert_allclose(_flat(round.sent["delta"]), w - x, rtol=1e-10)


def test_fedprox_never_works_longer_than_the_plan_allows(federate, problems):
    few, all_ = (federate(FedProx(mu=0.3, gamma=gamma), problems, learning_rate=ETA, tau=2) for gamma in (1e-9, None))
    np.testing.assert_array_equal(few.round(), all_.round())


def test_feddyn_equals_algorithm_1_of_the_paper(federate, problems, grad):
    federation = federate(FedDyn(alpha=0.4), problems, learning_rate=ETA, tau=3)
    x, h, lambdas = federation.x.copy(), np.zeros(5), np.zeros((3, 5))
    for asked in ([0, 1, 2], [0, 2], [1], [0, 1, 2]):
        thetas = []
        for k in asked:
            theta = x.copy()
            for _ in range(3):
                theta = theta - ETA * (grad(problems[k], theta) - lambdas[k] + 0.4 * (theta - x))
            lambdas[k] -= 0.4 * (theta - x)
            thetas.append(theta)
        h = h - 0.4 / 3 * sum(theta - x for theta in thetas)
        x = np.mean(thetas, axis=0) - h / 0.4
        np.testing.assert_allclose(federation.round(asked), x, rtol=1e-11)
        np.testing.assert_allclose(federation.slots["correction"], lambdas.mean(axis=0), atol=1e-14)


@pytest.mark.parametrize("sample", [None, 1])
def test_feddyn_reaches_the_minimiser_of_two_unlike_sites(federate, problems, solve, sample):
    federation = federate(FedDyn(alpha=2.0), problems[:2], learning_rate=ETA, tau=60)
    for number in range(400):
        federation.round(None if sample is None else [number * 7 // 3 % 2])
    np.testing.assert_allclose(federation.x, solve(problems[:2]), atol=1e-9)


def test_feddyn_keeps_h_as_the_mean_of_all_multipliers_when_a_site_joins(federate, problems):
    federation = federate(FedDyn(alpha=0.4), problems[:2], learning_rate=ETA, compression="rand_k:3")
    federation.round()
    federation.problems.append(problems[2])
    federation.states.append({})
    federation.heads.append(None)
    federation.round([0, 1])
    lambdas = [_flat(s["multiplier"]) if s else np.zeros(5) for s in federation.states]
    np.testing.assert_allclose(federation.slots["correction"], np.mean(lambdas, axis=0), atol=1e-15)


def test_fedcurv_trains_against_the_sum_over_the_others(federate, problems, grad):
    federation = federate(FedCurv(strength=0.02), problems, learning_rate=0.02, tau=3)
    x, n = federation.x.copy(), np.array([len(b) for _, b in problems], float)
    fishers, models = {}, {}
    for asked in ([0, 1, 2], [0, 1, 2], [0, 1], [0, 2]):
        new_fishers, new_models = {}, {}
        for i in asked:
            others = [j for j in fishers if j != i]
            w = x.copy()
            for _ in range(3):
                penalty = sum((2 * 0.02 * fishers[j] * (w - models[j]) for j in others), np.zeros(5))
                w = w - 0.02 * (grad(problems[i], w) + penalty)
            a, b = problems[i]
            new_fishers[i] = np.mean([(2 * (row @ w - y) * row) ** 2 for row, y in zip(a, b, strict=True)], axis=0)
            new_models[i] = w
        x = np.average([new_models[i] for i in asked], axis=0, weights=n[asked])
        fishers, models = new_fishers, new_models
        np.testing.assert_allclose(federation.round(asked), x, rtol=1e-10)
        np.testing.assert_allclose(federation.slots["fisher"], sum(fishers.values()), rtol=1e-10)


def test_fedcurv_sends_each_rounds_fisher_without_what_an_earlier_ones_cast_lost(federate, problems):
    federation = federate(FedCurv(strength=0.02), problems, learning_rate=0.02, compression="bfloat16")
    for _ in range(3):
        federation.round()
        assert all(set(kept) == {"delta"} for kept in federation.feedback.values())


def test_fedcurv_takes_out_nothing_where_the_sites_last_update_did_not_count(federate, problems):
    federation = federate(FedCurv(strength=0.02), problems, learning_rate=0.02)
    federation.round()
    federation.round(lost=(2,))
    federation.number += 1
    alone = federation.site_round(2)
    alone.state = {}
    with_state = federation.site_round(2)
    for round in (alone, with_state):
        federation.method.client().work(round)
    np.testing.assert_array_equal(_flat(alone.sent["delta"]), _flat(with_state.sent["delta"]))


def test_site_momentum_sends_the_average_of_its_changes_and_begins_with_the_first(federate, problems, grad):
    federation = federate(SiteMomentum(beta=0.8), problems, learning_rate=ETA, tau=3)
    x, n = federation.x.copy(), np.array([len(b) for _, b in problems])
    momenta = [None] * len(problems)
    for _ in range(4):
        for site, problem in enumerate(problems):
            w = x.copy()
            for _ in range(3):
                w = w - ETA * grad(problem, w)
            before = momenta[site]
            momenta[site] = w - x if before is None else 0.2 * (w - x) + 0.8 * before
        x = x + np.average(momenta, axis=0, weights=n)
        np.testing.assert_allclose(federation.round(), x, rtol=1e-12)


def test_site_momentum_without_beta_is_fedavg_to_the_bit(federate, problems):
    plain, avg = (federate(m, problems, learning_rate=ETA, tau=3) for m in (SiteMomentum(beta=0), FedAvg()))
    for _ in range(3):
        np.testing.assert_array_equal(plain.round(), avg.round())
