"""FedAsync, FedBuff and stale compensation: what one server step does to updates of known age."""

from __future__ import annotations

import numpy as np
import pytest

from federation.algorithms.fedasync import FedAsync
from federation.algorithms.fedbuff import FedBuff
from federation.algorithms.stale import StaleCompensation
from federation.plan import Plan

ETA = 0.05


def _flat(vector):
    return np.concatenate([vector["bias"], vector["weight"]])


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"strategy": "constant"}, {0: 0.6, 7: 0.6}),
        ({"strategy": "polynomial"}, {0: 0.6, 3: 0.3, 8: 0.2}),
        ({"strategy": "polynomial", "a": 1.0}, {1: 0.3}),
        ({"strategy": "hinge"}, {0: 0.6, 4: 0.6, 5: 0.6 / 11, 6: 0.6 / 21}),
        ({"strategy": "hinge", "a": 1.0, "b": 0}, {0: 0.6, 2: 0.2}),
    ],
    ids=["constant", "polynomial", "polynomial-1", "hinge", "hinge-1"],
)
def test_fedasync_weighs_a_model_by_its_age(options, shares):
    method = FedAsync(alpha=0.6, **options)
    for staleness, share in shares.items():
        assert method.share(staleness) == pytest.approx(share, rel=1e-14)


def test_fedasync_mixes_in_the_whole_local_model_not_its_change(federate, problems, grad):
    federation = federate(FedAsync(alpha=0.6), problems, learning_rate=ETA)
    x_tau, x = np.full(5, 3.0), federation.x.copy()
    round = federation.site_round(0, x_tau)
    federation.method.client().work(round)
    w = x_tau - ETA * grad(problems[0], x_tau)
    rebased = x_tau - x + _flat(round.sent["delta"])  # what the combiner hands over: needs_base
    round.sent["delta"] = type(round.start)({"bias": rebased[:1], "weight": rebased[1:]})
    federation.combine({0: round}, connected=3, staleness=(3,))
    np.testing.assert_allclose(federation.x, 0.7 * x + 0.3 * w, rtol=1e-13)


def test_fedasync_holds_the_site_near_the_model_it_got(federate, problems, grad):
    federation = federate(FedAsync(rho=0.8), problems, learning_rate=ETA, tau=3)
    x_tau = np.full(5, 2.0)
    round = federation.site_round(1, x_tau)
    federation.method.client().work(round)
    w = x_tau.copy()
    for _ in range(3):
        w = w - ETA * (grad(problems[1], w) + 0.8 * (w - x_tau))
    np.testing.assert_allclose(_flat(round.sent["delta"]), w - x_tau, rtol=1e-12)


def test_fedbuff_divides_by_the_buffer_not_by_the_weights(federate, problems):
    federation = federate(FedBuff(k=3), problems, learning_rate=ETA, server_learning_rate=0.5)
    x, rounds = federation.x.copy(), {site: federation.site_round(site) for site in range(3)}
    for round in rounds.values():
        federation.method.client().work(round)
    federation.combine(rounds, connected=3, staleness=(0, 3, 8))
    deltas = [_flat(round.sent["delta"]) for round in rounds.values()]
    expected = x + 0.5 / 3 * (deltas[0] + deltas[1] / 2 + deltas[2] / 3)
    np.testing.assert_allclose(federation.x, expected, rtol=1e-13)


def test_stale_compensation_takes_the_penalty_once_for_every_round_of_age(federate, problems):
    federation = federate(StaleCompensation(penalty=0.5), problems, learning_rate=ETA)
    x, rounds = federation.x.copy(), {site: federation.site_round(site) for site in range(3)}
    for round in rounds.values():
        federation.method.client().work(round)
    federation.combine(rounds, connected=3, staleness=(0, 1, 3))
    weights = np.array([len(b) for _, b in problems]) * [1, 0.5, 0.125]
    deltas = [_flat(round.sent["delta"]) for round in rounds.values()]
    np.testing.assert_allclose(federation.x, x + weights @ deltas / weights.sum(), rtol=1e-13)


def test_buffers_close_at_their_own_size():
    assert FedAsync().buffer_size(Plan(quorum=2, minimum_sites=4)) == 1
    assert FedBuff(k=7).buffer_size(Plan()) == 7
    assert StaleCompensation(k=3).buffer_size(Plan(quorum=2, minimum_sites=4)) == 3
    assert StaleCompensation().buffer_size(Plan(quorum=2, minimum_sites=4)) == 2
    assert StaleCompensation().buffer_size(Plan(minimum_sites=4)) == 4
