"""Feedback: what was left out comes later, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation.algorithms.algorithm import Algorithm
from federation.compression import decode_payload, encode_payload, feedback_for, load_codec
from federation.compression.dgc import WARM_UP
from federation.compression.feedback import ErrorFeedback, MomentumCorrection, WarmQ
from federation.plan import Plan
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from federation.compression import Array, Codec, Feedback
    from federation.compression.feedback import HasOwnFeedback

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="b", dtype=DType.FLOAT64, shape=(6,)),
        TensorSpec(name="w", dtype=DType.FLOAT64, shape=(20, 12)),
    ]
)


@dataclass
class Method:
    has_own_feedback: bool = False
    no_feedback: frozenset[str] = frozenset()


def vector(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(spec.shape) for spec in SCHEMA}


def send(
    codec: Codec, feedback: Feedback, v: dict[str, Array], state: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], int]:
    """What a client's round does."""
    target = feedback.before(v, state)
    data = encode_payload(SCHEMA, target, codec, seed=len(state), state=state)
    sent = decode_payload(data, SCHEMA)
    return sent, feedback.after(target, sent, data, state), len(data)


@pytest.mark.parametrize("spec", ["top_k:0.1", "stc:0.1", "float16", "int8:8", "powersgd:2", "top_k:1"])
def test_what_is_sent_plus_what_is_kept_is_all_there_was(spec: str) -> None:
    codec = load_codec(spec)
    feedback = feedback_for(codec, Plan(), Method())
    assert feedback is not None
    state: dict[str, Array] = {}
    given = {name: np.zeros_like(array) for name, array in vector().items()}
    received = {name: np.zeros_like(array) for name, array in given.items()}
    for number in range(20):
        v = vector(number)
        sent, state, _ = send(codec, feedback, v, state)
        for name in given:
            given[name] += v[name]
            received[name] += sent[name]
    for name in given:
        np.testing.assert_allclose(received[name] + state[f"error/{name}"], given[name], rtol=1e-12, atol=1e-12)


def test_neither_the_vector_nor_the_state_is_written() -> None:
    codec, v = load_codec("top_k:0.1"), vector()
    feedback = ErrorFeedback()
    _, state, _ = send(codec, feedback, v, {})
    kept = {name: array.copy() for name, array in state.items()}
    send(codec, feedback, v, state)
    for name, array in kept.items():
        np.testing.assert_array_equal(state[name], array)
    for name, array in vector().items():
        np.testing.assert_array_equal(v[name], array)


def test_gradient_descent_with_top_k_converges_only_with_feedback() -> None:
    # Two sites whose gradients cancel in the largest coordinate: Top-1 without feedback never moves the other.
    tilt = {0: np.array([10.0, 1.0]), 1: np.array([-10.0, 1.0])}
    schema = TensorSchema.of([TensorSpec(name="x", dtype=DType.FLOAT64, shape=(2,))])
    codec = load_codec("top_k:1")

    def run(feedback: Feedback | None) -> Array:
        x = np.zeros(2)
        states: list[dict[str, Array]] = [{}, {}]
        for _ in range(400):
            total = np.zeros(2)
            for site, shift in tilt.items():
                v = {"x": -0.02 * (x - shift)}
                target = feedback.before(v, states[site]) if feedback else v
                data = encode_payload(schema, target, codec, seed=0)
                sent = decode_payload(data, schema)
                if feedback:
                    states[site] = feedback.after(target, sent, data, states[site])
                total += sent["x"]
            x = x + total / 2
        return x

    assert np.abs(run(ErrorFeedback()) - [0, 1]).max() < 0.25
    assert run(None)[1] == 0


def test_dgc_accumulates_momentum_and_clears_what_it_sent() -> None:
    codec = load_codec("dgc:2,0.5")
    feedback = feedback_for(codec, Plan(), Method())
    assert isinstance(feedback, MomentumCorrection)
    g = vector()
    u = {name: np.zeros_like(array) for name, array in g.items()}
    v = {name: np.zeros_like(array) for name, array in g.items()}
    state: dict[str, Array] = {}
    for _ in range(5):
        sent, state, _ = send(codec, feedback, g, state)
        for name in g:
            u[name] = 0.5 * u[name] + g[name]
            v[name] = v[name] + u[name]
        kept = sorted(np.concatenate([np.abs(array).reshape(-1) for array in v.values()]))[-2:]
        for name in g:
            mask = np.abs(v[name]) >= kept[0]
            np.testing.assert_allclose(sent[name], v[name] * mask, rtol=1e-12)
            u[name][mask], v[name][mask] = 0, 0
            np.testing.assert_allclose(state[f"velocity/{name}"], v[name], rtol=1e-12)
            np.testing.assert_allclose(state[f"momentum/{name}"], u[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_on", [True, False])
def test_dgc_warm_up_sends_less_each_stage_and_then_its_share(is_on: bool) -> None:
    codec = load_codec("dgc:1,0.9,10")
    feedback = feedback_for(codec, Plan(error_feedback=None if is_on else False), Method())
    assert feedback is not None
    state: dict[str, Array] = {}
    counts = []
    for number in range(12):
        sent, state, _ = send(codec, feedback, vector(number), state)
        counts.append(sum(int(np.count_nonzero(array)) for array in sent.values()))
    elements = SCHEMA.elements
    assert counts == [max(1, round(elements * share)) for share in WARM_UP for _ in range(2)] + [1, 1]


def test_dgc_clips_to_the_threshold_over_the_root_of_the_sites() -> None:
    feedback = feedback_for(load_codec("dgc:1,0.9,0,0.5"), Plan(sites=4, minimum_sites=4), Method())
    assert feedback is not None
    target = feedback.before(vector(), {})
    norm = np.sqrt(sum(float(np.square(array).sum()) for array in target.values()))
    assert norm == pytest.approx(0.25)


def test_powersgd_starts_from_the_last_q_and_so_finds_the_best_directions() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((20, 12)) * np.exp(-np.arange(12.0) / 2)
    v = {"b": np.zeros(6), "w": matrix}
    codec, plan = load_codec("powersgd:2"), Plan(error_feedback=False)
    feedback = feedback_for(codec, plan, Method())
    assert isinstance(feedback, WarmQ)
    state: dict[str, Array] = {}
    errors = []
    for _ in range(15):
        sent, state, _ = send(codec, feedback, v, state)
        errors.append(float(np.square(sent["w"] - matrix).sum()))
    best = float(np.square(np.linalg.svd(matrix, compute_uv=False)[2:]).sum())
    assert set(state) == {"q/0"}
    assert errors[0] > 1.05 * best
    assert errors[-1] == pytest.approx(best, rel=1e-6)


def test_powersgd_recovers_from_a_zero_update() -> None:
    codec = load_codec("powersgd:2")
    feedback = feedback_for(codec, Plan(), Method())
    assert feedback is not None
    _, state, _ = send(codec, feedback, {name: array * 0 for name, array in vector().items()}, {})
    sent, _, _ = send(codec, feedback, vector(), state)
    assert np.abs(sent["w"]).max() > 0


def test_feedback_is_for_biased_codecs_that_nothing_else_corrects() -> None:
    top_k = load_codec("top_k:0.1")
    assert feedback_for(load_codec("rand_k:0.1"), Plan(), Method()) is None
    assert feedback_for(top_k, Plan(error_feedback=False), Method()) is None
    assert feedback_for(top_k, Plan(), Method(has_own_feedback=True)) is None
    assert isinstance(feedback_for(top_k, Plan(), Method()), ErrorFeedback)
    assert isinstance(feedback_for(top_k, Plan(error_feedback=True), Method()), ErrorFeedback)


def test_a_difference_to_what_both_ends_keep_is_not_fed_back_twice() -> None:
    method = Method(no_feedback=frozenset({"control"}))
    assert feedback_for(load_codec("top_k:0.1"), Plan(), method, "control") is None
    assert feedback_for(load_codec("dgc:0.1"), Plan(), method, "control") is None
    assert isinstance(feedback_for(load_codec("top_k:0.1"), Plan(), method, "delta"), ErrorFeedback)
    powersgd = load_codec("powersgd:2")
    kept = feedback_for(powersgd, Plan(), method, "control")
    assert kept is not None
    assert not any(key.startswith("error/") for key in send(powersgd, kept, vector(), {})[1])


def test_powersgd_finds_the_whole_where_the_method_sends_differences() -> None:
    # EF21 on a fixed vector: g moves to it by what the codec makes of the rest.
    codec = load_codec("powersgd:2")
    feedback = feedback_for(codec, Plan(), Method(has_own_feedback=True))
    assert feedback is not None
    rest, state = vector(), {}
    for _ in range(40):
        sent, state, _ = send(codec, feedback, rest, state)
        rest = {name: array - sent[name] for name, array in rest.items()}
    assert max(np.abs(array).max() for array in rest.values()) < 1e-6


def test_an_algorithm_is_what_feedback_asks_for() -> None:
    method: HasOwnFeedback = Algorithm()
    assert feedback_for(load_codec("top_k:0.1"), Plan(), method) is not None


@pytest.mark.parametrize("spec", ["top_k:1", "dgc:1", "powersgd:1"])
def test_state_of_a_parameter_without_dimensions_is_an_array(spec: str) -> None:
    # NumPy makes scalars of what is computed from such arrays, and a scalar cannot be stored as a tensor.
    schema = TensorSchema.of([TensorSpec(name="x", dtype=DType.FLOAT32, shape=())])
    codec = load_codec(spec)
    feedback = feedback_for(codec, Plan(), Method())
    assert feedback is not None
    state: dict[str, Array] = {}
    for _ in range(2):
        target = feedback.before({"x": np.array(2.0, np.float32)}, state)
        data = encode_payload(schema, target, codec, seed=0, state=state)
        state = feedback.after(target, decode_payload(data, schema), data, state)
        assert all(isinstance(array, np.ndarray) for array in [*target.values(), *state.values()])
