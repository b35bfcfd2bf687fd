"""FedSGD, DCGD, DIANA, MARINA and EF21 against their formulas over whole vectors."""

from __future__ import annotations

import numpy as np
import pytest

from federation.algorithms.client import shared_stream
from federation.algorithms.dcgd import Dcgd
from federation.algorithms.diana import Diana
from federation.algorithms.ef21 import Ef21
from federation.algorithms.fedsgd import FedSgd
from federation.algorithms.marina import Marina

ETA = 0.05


def test_fedsgd_is_gradient_descent_on_all_examples(federate, problems, grad):
    federation = federate(FedSgd(), problems, learning_rate=ETA, server_learning_rate=2.0)
    x = federation.x.copy()
    n = [len(b) for _, b in problems]
    for _ in range(3):
        x = x - 2.0 * ETA * sum(n_i / sum(n) * grad(p, x) for n_i, p in zip(n, problems, strict=True))
        np.testing.assert_allclose(federation.round(), x, rtol=1e-13)


@pytest.mark.parametrize("method", [Dcgd(), Diana(), Ef21(), Marina()], ids=lambda method: method.name)
def test_without_compression_they_are_gradient_descent_on_the_mean(federate, problems, grad, method):
    federation = federate(method, problems, learning_rate=ETA)
    x = federation.x.copy()
    for _ in range(10):
        x = x - ETA * np.mean([grad(p, x) for p in problems], axis=0)
        np.testing.assert_allclose(federation.round(), x, rtol=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_diana_keeps_h_as_the_mean_of_all_h_i_and_moves_by_the_old_h(federate, problems, alpha):
    federation = federate(
        Diana(alpha=alpha), problems, learning_rate=ETA, compression="rand_k:2", server_learning_rate=0.7
    )
    for asked in ([0, 1, 2], [0, 2], [1], [0, 1, 2]):
        x, h = federation.x.copy(), federation.slots["shift"].copy()
        before = [_flat(state.get("shift"), 5) for state in federation.states]
        federation.round(asked)
        after = [_flat(state.get("shift"), 5) for state in federation.states]
        share = alpha or 2 / 5  # 1/(1 + ω), ω = d/K − 1
        m = [(after[site] - before[site]) / share for site in asked]
        assert all(np.count_nonzero(m_i) <= 2 for m_i in m)
        np.testing.assert_allclose(federation.x, x + 0.7 * (h + np.mean(m, axis=0)), rtol=1e-12)
        np.testing.assert_allclose(federation.slots["shift"], np.mean(after, axis=0), atol=1e-15)


def test_dcgd_stalls_where_diana_and_marina_go_on(federate, problems, solve):
    error = {}
    for method in (Dcgd(), Diana(), Marina()):
        federation = federate(method, problems, learning_rate=0.03, compression="rand_k:2")
        for _ in range(400):
            federation.round()
        error[method.name] = np.linalg.norm(federation.x - solve(problems))
    assert error["dcgd"] > 1e-3
    assert error["diana"] < 1e-8
    assert error["marina"] < 1e-8


def test_marina_takes_whole_rounds_by_the_shared_coin_and_differences_between_them(federate, problems, grad):
    federation = federate(Marina(p=0.3), problems, learning_rate=ETA, compression="rand_k:2", seed=5)
    wholes = [number == 1 or shared_stream(5, number, "coin").random() < 0.3 for number in range(1, 13)]
    assert sum(wholes) not in (1, 12)
    previous = federation.x.copy()
    for is_whole in wholes:
        x, g = federation.x.copy(), federation.slots["estimate"].copy()
        federation.round()
        if is_whole:
            expected = -ETA * np.mean([grad(p, x) for p in problems], axis=0)
            np.testing.assert_allclose(federation.slots["estimate"], expected, rtol=1e-12)
        else:
            moved = federation.slots["estimate"] - g
            differences = [-ETA * (grad(p, x) - grad(p, previous)) for p in problems]
            # Each site keeps 2 of 5 coordinates, times 5/2: every coordinate is a sum over a subset of sites.
            subsets = np.array([[mask >> site & 1 for site in range(3)] for mask in range(8)])
            gap = np.abs(subsets @ np.array(differences) * 2.5 / 3 - moved).min(axis=0)
            np.testing.assert_allclose(gap, 0, atol=1e-14)
        np.testing.assert_allclose(federation.x, x + federation.slots["estimate"], rtol=1e-13)
        np.testing.assert_array_equal(federation.slots["previous"], x)
        previous = x


def test_marina_asks_every_site_exactly_in_its_whole_rounds(federate, problems):
    from federation.plan import ExperimentSpec, tensor_rows

    federation = federate(Marina(), problems, compression="rand_k:2", seed=5, sample=1, sites=3)
    uplink, downlink = federation.method.payload_rows(federation.plan)
    spec = ExperimentSpec(
        name="try", shard="none", plan=federation.plan, tensors=tensor_rows(federation.schema), uplink=uplink,
        downlink=downlink,
    )  # fmt: skip
    asked = [federation.method.asks_all(spec, number) for number in range(1, 200)]
    assert asked == [number == 1 or shared_stream(5, number, "coin").random() < 2 / 5 for number in range(1, 200)]


def test_ef21_keeps_g_as_the_mean_of_all_g_i_and_steps_along_it(federate, problems, grad):
    federation = federate(Ef21(), problems, learning_rate=ETA, compression="rand_k:2")
    for asked in ([0, 1, 2], [0, 2], [1, 2]):
        x, before = federation.x.copy(), [_flat(state.get("estimate"), 5) for state in federation.states]
        federation.round(asked)
        after = [_flat(state.get("estimate"), 5) for state in federation.states]
        for site in asked:
            moved, wanted = after[site] - before[site], -ETA * grad(problems[site], x) - before[site]
            # C/(1 + ω) of an unbiased Rand-K is the coordinate itself, or nothing.
            np.testing.assert_allclose(moved[moved != 0], wanted[moved != 0], rtol=1e-10)
            assert np.count_nonzero(moved) <= 2
        np.testing.assert_allclose(federation.slots["estimate"], np.mean(after, axis=0), atol=1e-15)
        np.testing.assert_allclose(federation.x, x + federation.slots["estimate"], rtol=1e-13)


def test_ef21_converges_under_compression(federate, problems, solve):
    federation = federate(Ef21(), problems, learning_rate=0.03, compression="rand_k:2")
    for _ in range(600):
        federation.round()
    np.testing.assert_allclose(federation.x, solve(problems), atol=1e-8)


@pytest.mark.parametrize(("method", "slot"), [(Diana(), "shift"), (Ef21(), "estimate")], ids=["diana", "ef21"])
def test_a_late_joiner_starts_at_zero_and_the_servers_mean_stays_true(federate, problems, method, slot):
    federation = federate(method, problems[:2], learning_rate=ETA, compression="rand_k:2")
    federation.round()
    federation.problems.append(problems[2])
    federation.states.append({})
    federation.heads.append(None)
    federation.round([0, 1])
    after = [_flat(state.get(slot), 5) for state in federation.states]
    assert not after[2].any()
    np.testing.assert_allclose(federation.slots[slot], np.mean(after, axis=0), atol=1e-15)
    federation.round()
    after = [_flat(state.get(slot), 5) for state in federation.states]
    np.testing.assert_allclose(federation.slots[slot], np.mean(after, axis=0), atol=1e-15)


def _flat(vector, d):
    return np.zeros(d) if vector is None else np.concatenate([vector["bias"], vector["weight"]])
