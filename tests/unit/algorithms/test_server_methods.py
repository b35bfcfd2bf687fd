"""FedNova, the FedOpt family, q-FedAvg and N against their formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import pytest

from federation.algorithms import ServerHalf, ServerRound, ServerTile, SiteFacts, count_sites
from federation.algorithms.fedavg import FedAvg
from federation.algorithms.fednova import FedNova, accumulated
from federation.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi
from federation.algorithms.qfedavg import QFedAvg
from federation.plan import Plan

ETA = 0.05


def _facts(steps=(2, 5, 3), examples=(10, 20, 30), **each):
    return tuple(
        SiteFacts(site=f"site-{i}", examples=n, steps=tau, scalars={}, **{k: v[i] for k, v in each.items()})
        for i, (tau, n) in enumerate(zip(steps, examples, strict=True))
    )


def _one_step(half, facts, deltas, x, state=None, **plan):
    """Return x⁺ of one server step over the whole vector, with the rule's weighted mean done here."""
    plan = Plan(**plan)
    round = ServerRound(number=1, plan=plan, sites=facts, total=3, learning_rate=plan.server_learning_rate)
    mean = np.average(deltas, axis=0, weights=half.weights(round)["delta"])
    tile = ServerTile(x=x.copy(), mean={"delta": mean}, state=state or {}, start=0)
    half.step(tile, half.begin(round))
    return tile.x


@pytest.fixture
def deltas():
    return np.random.default_rng(0).normal(size=(3, 6))


@pytest.fixture
def x():
    return np.linspace(-1, 1, 6)


class _Weightless(ServerHalf):
    pass


@pytest.mark.parametrize(("weighting", "p"), [("examples", [10, 20, 30]), ("uniform", [1, 1, 1])])
def test_fedavg_weighs_as_the_plan_says(deltas, x, weighting, p):
    result = _one_step(_Weightless(), _facts(), deltas, x, weighting=weighting, server_learning_rate=0.5)
    np.testing.assert_allclose(result, x + 0.5 * np.array(p) @ deltas / sum(p), rtol=1e-14)


def test_fedavg_with_server_rate_1_adds_the_mean_to_the_bit(deltas, x):
    mean = np.average(deltas, axis=0, weights=[10, 20, 30])
    np.testing.assert_array_equal(_one_step(ServerHalf(), _facts(), deltas, x), x + mean)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.6, 0.0), (0.0, 1.5)])
def test_fednova_equals_its_equations(deltas, x, momentum, mu):
    facts, p = _facts(), np.array([10, 20, 30]) / 60
    a = []
    for site in facts:  # the coefficients of the local gradients, step by step
        velocity = total = 0.0
        for _ in range(site.steps):
            velocity = momentum * velocity + 1 - 0.1 * mu * total
            total += velocity
        a.append(total)
    expected = x + 0.5 * (p @ a) * sum(p_i * d / a_i for p_i, d, a_i in zip(p, deltas, a, strict=True))
    half = FedNova(momentum=momentum, mu=mu).server()
    result = _one_step(half, facts, deltas, x, learning_rate=0.1, server_learning_rate=0.5)
    np.testing.assert_allclose(result, expected, rtol=1e-13)


def test_fednova_with_equal_steps_is_fedavg(deltas, x):
    facts = _facts(steps=(4, 4, 4))
    expected = _one_step(ServerHalf(), facts, deltas, x)
    np.testing.assert_allclose(_one_step(FedNova().server(), facts, deltas, x), expected, rtol=1e-14)


@pytest.mark.parametrize(("momentum", "mu"), [(0.5, 0.0), (0.0, 2.0)])
def test_fednova_sites_do_the_work_their_coefficients_say(federate, problems, momentum, mu):
    """With a constant gradient g, Δ = −η ‖a‖₁ g: the local run and the closed form agree."""
    federation = federate(FedNova(momentum=momentum, mu=mu), problems, learning_rate=ETA, tau=4)
    round = federation.site_round(0)
    g = np.arange(5.0)
    round.problem._gradient = lambda: type(round.start)({"bias": g[:1].copy(), "weight": g[1:].copy()})
    federation.method.client().work(round)
    expected = -ETA * accumulated(4, rho=momentum, eta_mu=ETA * mu) * g
    np.testing.assert_allclose(np.concatenate(list(round.sent["delta"].values())), expected, atol=1e-14)


def test_fednova_takes_a_site_without_steps_for_one_that_stood_still(deltas, x):
    deltas[1] = 0
    result = _one_step(FedNova().server(), _facts(steps=(2, 0, 2)), deltas, x)
    assert np.isfinite(result).all()


def test_fedavgm_two_steps_by_hand():
    half, v, x = FedAvgM(beta=0.5).server(), np.zeros(1), np.array([1.0])
    tile = ServerTile(x=x, mean={"delta": np.array([2.0])}, state={"momentum": v}, start=0)
    half.step(tile, {"eta": 0.1})
    assert (v[0], x[0]) == (2.0, pytest.approx(1.2))
    half.step(tile, {"eta": 0.1})
    assert (v[0], x[0]) == (3.0, pytest.approx(1.5))


class TestAdaptive:
    """Two steps of Δ = 0.5, then Δ = −0.01, η = 0.1, on paper."""

    methods: ClassVar = [FedAdagrad(), FedAdam(), FedYogi()]

    @pytest.mark.parametrize("method", methods, ids=lambda method: method.name)
    def test_starts_at_m_0_and_v_tau_squared(self, method):
        assert method.server().initial("momentum") == 0
        assert method.server().initial("variance") == pytest.approx(1e-6)

    @pytest.mark.parametrize(
        ("method", "m1", "v1", "m2", "v2"),
        [
            (FedAdagrad(), 0.5, 1e-6 + 0.25, -0.01, 1e-6 + 0.25 + 1e-4),
            (FedAdam(), 0.05, 0.99e-6 + 0.0025, 0.044, 0.99 * (0.99e-6 + 0.0025) + 1e-6),
            (FedYogi(), 0.05, 1e-6 + 0.0025, 0.044, 1e-6 + 0.0025 - 1e-6),
        ],
        ids=["adagrad", "adam", "yogi"],
    )
    def test_two_steps_by_hand(self, method, m1, v1, m2, v2):
        half, x, m, v = method.server(), np.zeros(1), np.zeros(1), np.full(1, 1e-6)
        state = {"momentum": m, "variance": v}
        half.step(ServerTile(x=x, mean={"delta": np.array([0.5])}, state=state, start=0), {"eta": 0.1})
        assert (m[0], v[0]) == (pytest.approx(m1), pytest.approx(v1, rel=1e-12))
        first = 0.1 * m1 / (math.sqrt(v1) + 1e-3)
        assert x[0] == pytest.approx(first, rel=1e-12)
        half.step(ServerTile(x=x, mean={"delta": np.array([-0.01])}, state=state, start=0), {"eta": 0.1})
        assert (m[0], v[0]) == (pytest.approx(m2), pytest.approx(v2, rel=1e-12))
        assert x[0] == pytest.approx(first + 0.1 * m2 / (math.sqrt(v2) + 1e-3), rel=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_qfedavg_equals_algorithm_2_of_the_paper(federate, problems, grad, q):
    federation = federate(QFedAvg(q=q), problems, learning_rate=ETA, tau=3)
    x, lipschitz = federation.x.copy(), 1 / ETA
    for _ in range(3):
        numerator, denominator = np.zeros(5), 0.0
        for problem in problems:
            a, b = problem
            loss, w = np.mean((a @ x - b) ** 2), x.copy()
            for _ in range(3):
                w = w - ETA * grad(problem, w)
            step = lipschitz * (x - w)
            numerator += loss**q * step
            denominator += q * loss ** (q - 1) * step @ step + lipschitz * loss**q
        x = x - numerator / denominator
        np.testing.assert_allclose(federation.round(), x, rtol=1e-12)


def test_qfedavg_with_q_0_is_uniform_fedavg(federate, problems):
    expected = federate(FedAvg(), problems, learning_rate=ETA, tau=2, weighting="uniform").round()
    np.testing.assert_allclose(federate(QFedAvg(q=0), problems, learning_rate=ETA, tau=2).round(), expected, rtol=1e-14)


def test_qfedavg_bears_losses_of_zero_and_beyond_reason_and_a_last_rate_of_zero(deltas, x):
    facts = tuple(
        SiteFacts(site=f"s{i}", examples=1, steps=1, scalars={"loss": loss}, norm=0.0)
        for i, loss in enumerate((0.0, 1.0, 1e300))
    )
    plan = {"learning_rate": 0.1, "local_schedule": "linear", "rounds": 1}
    assert np.isfinite(_one_step(QFedAvg(q=2.0).server(), facts, deltas * 0, x, **plan)).all()


@pytest.mark.parametrize(
    ("q", "norm", "schedule", "eta"),
    [(1.0, 0.3, "linear", 0.0), (0.0, 0.3, "linear", 1.0), (1.0, 1.3e154, "constant", 0.0)],
)
def test_qfedavg_bears_changes_at_a_rate_of_zero_and_of_a_length_beyond_reason(q, norm, schedule, eta):
    # At η_l = 0 what error feedback still owes arrives all the same, and a hostile site sends what it likes.
    facts = _facts(norm=[norm] * 3)
    facts = tuple(dataclasses.replace(site, scalars={"loss": 1.0}) for site in facts)
    plan = Plan(learning_rate=0.1, local_schedule=schedule, rounds=2)
    round = ServerRound(number=2, plan=plan, sites=facts, total=3, learning_rate=1.0)
    assert QFedAvg(q=q).server().begin(round)["eta"] == eta


@pytest.mark.parametrize(
    ("previous", "connected", "sites", "total"), [(0, 3, None, 3), (5, 3, None, 5), (2, 3, 10, 10), (12, 3, 10, 12)]
)
def test_n_is_the_most_sites_there_ever_were_and_never_falls(previous, connected, sites, total):
    assert count_sites(previous, connected, Plan(sites=sites)) == total
