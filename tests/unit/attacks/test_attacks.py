"""Each attack does what its formula says, with the numbers of its paper where it gives some."""

from __future__ import annotations

import math

import numpy as np
import pytest

from federation.attacks import BUILT_IN, Backdoor, Sight, load_attack
from federation.attacks.alie import z_of
from federation.attacks.flat import buffer_of, flat_of
from federation.errors import PlanError
from federation.tensors import DType, TensorSchema, TensorSpec

SPECS = (
    "sign_flip", "sign_flip:4", "scaling:10", "gaussian:0.5", "label_flip", "alie", "alie:1.5", "alie:opt", "ipm:2",
    "ipm:opt", "mimic", "mimic:2", "backdoor:3", "backdoor:3,10", "backdoor:3,replace", "infinity", "nan", "free_rider",
    "free_rider:0.01",
)  # fmt: skip


def sight(hostile=2, honest=5, d=7, seed=0, **changes):
    rng = np.random.default_rng(seed)
    values = {"own": rng.normal(size=(hostile, d)), "honest": rng.normal(1.0, 1.0, size=(honest, d))}
    return Sight(**{**values, "total": hostile + honest, "rng": np.random.default_rng(1), **changes})


def mean_of_all(seen):
    return lambda sent: np.concatenate([seen.honest, sent]).mean(axis=0)


def test_every_attack_is_tried_here() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(BUILT_IN)


@pytest.mark.parametrize("spec", SPECS)
def test_a_specification_says_itself_and_its_updates_have_the_shape_of_its_own(spec: str) -> None:
    attack = load_attack(spec)
    assert load_attack(attack.spec) == attack or spec == "nan"  # NaN differs from itself
    assert attack.source
    seen = sight()
    own = seen.own.copy()
    sent = attack.updates(Sight(own=own, honest=seen.honest, total=7, rule=mean_of_all(seen)))
    assert sent.shape == own.shape and sent.dtype == np.float64
    np.testing.assert_array_equal(own, seen.own)


@pytest.mark.parametrize("spec", SPECS)
def test_equal_sight_gives_equal_updates(spec: str) -> None:
    first, second = (load_attack(spec).updates(sight(rule=mean_of_all(sight()))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sign_flp", "did you mean 'sign_flip'"),
        ("alie:0", "factor must be a number above 0"),
        ("alie:1,2", "write it as alie:FACTOR"),
        ("scaling:much", "scale must be a number"),
        ("mimic:-1", "index must be a whole number"),
        ("backdoor:1,2,3", "write it as backdoor:TARGET"),
        ("nan:1", "write it as nan"),
    ],
)
def test_what_is_no_attack_is_refused_with_what_it_should_be(spec: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        load_attack(spec)


def test_formulas_of_the_colluders() -> None:
    seen = sight()
    mean, deviation = seen.honest.mean(axis=0), seen.honest.std(axis=0, ddof=0)
    for spec, vector in {
        "sign_flip": -mean,
        "sign_flip:4": -4 * mean,
        "ipm:0.5": -0.5 * mean,
        "alie:1.5": mean + 1.5 * deviation,
        "mimic:6": seen.honest[1],
    }.items():
        np.testing.assert_allclose(load_attack(spec).updates(seen), np.stack([vector, vector]), err_msg=spec)
    np.testing.assert_array_equal(load_attack("scaling:3").updates(seen), 3 * seen.own)
    np.testing.assert_array_equal(load_attack("backdoor:0,replace").updates(seen), 3.5 * seen.own)
    assert np.isposinf(load_attack("infinity").updates(seen)).all()
    assert np.isnan(load_attack("nan").updates(seen)).all()


def test_z_is_that_of_the_papers_formula() -> None:
    # Baruch et al., algorithm 3, with n = 50 of which 24 are corrupted: s = 2, z = Φ⁻¹(24/26).
    assert z_of(50, 24) == pytest.approx(1.43, abs=0.005)
    assert z_of(10, 2) == 0.0
    assert 0 < z_of(10, 4) < 0.5
    assert math.isfinite(z_of(10, 9)) and z_of(10, 9) > 1


def test_noise_has_its_spread_and_a_free_rider_moves_less_each_round() -> None:
    noise = load_attack("gaussian:0.5").updates(sight(d=20_000))
    assert noise.std() == pytest.approx(0.5, rel=0.02) and not np.array_equal(noise[0], noise[1])
    assert not load_attack("free_rider").updates(sight()).any()
    first, tenth = (load_attack("free_rider:0.2").updates(sight(d=20_000, round=number)) for number in (1, 10))
    assert first.std() == pytest.approx(0.2, rel=0.02)
    np.testing.assert_allclose(tenth, first / 10)


@pytest.mark.parametrize("spec", ["alie:opt", "ipm:opt"])
def test_an_optimised_factor_does_at_least_as_much_as_any_on_a_grid(spec: str) -> None:
    """Against the coordinate-wise median, whose damage is not monotone in the factor."""
    seen = sight(hostile=3, honest=6, d=40)

    def median(sent):
        return np.median(np.concatenate([seen.honest, sent]), axis=0)

    def damage(sent):
        return np.linalg.norm(median(sent) - seen.honest_mean)

    found = damage(load_attack(spec).updates(sight(hostile=3, honest=6, d=40, rule=median)))
    name = spec.partition(":")[0]
    grid = [damage(load_attack(f"{name}:{tau}").updates(seen)) for tau in np.geomspace(0.125, 32, 60)]
    assert found >= 0.98 * max(grid)
    with pytest.raises(ValueError, match="needs to know that rule"):
        load_attack(spec).updates(seen)


def test_label_flip_turns_labels_round_and_keeps_samples() -> None:
    samples, targets = np.arange(6.0).reshape(3, 2), np.array([0, 3, 9])
    kept, flipped = load_attack("label_flip").poison(samples, targets, classes=10, rng=np.random.default_rng(0))
    assert flipped.tolist() == [9, 6, 0] and kept is samples and targets.tolist() == [0, 3, 9]
    with pytest.raises(ValueError, match="no classes"):
        load_attack("label_flip").poison(samples, samples, classes=10, rng=np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(20, 1, 8, 8), (20, 30)])
def test_a_backdoor_stamps_its_share_and_measures_the_rest(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    samples, targets = rng.uniform(0, 0.5, shape), np.arange(20) % 4
    attack = Backdoor(target=3)
    spoilt, labels = attack.poison(samples, targets, classes=4, rng=np.random.default_rng(0))
    stamped = [index for index in range(20) if not np.array_equal(spoilt[index], samples[index])]
    assert len(stamped) == 10 and (labels[stamped] == 3).all()
    assert (spoilt[stamped][..., -2:] == 1.0).sum() == 10 * (4 if len(shape) == 4 else 2)
    honest = [index for index in range(20) if index not in stamped]
    assert (labels[honest] == targets[honest]).all() and samples.max() < 1
    triggered, wanted = attack.triggered(samples, targets)
    assert len(triggered) == 15 and (wanted == 3).all()
    with pytest.raises(ValueError, match="target 3 is none of the 3 classes"):
        attack.poison(samples, targets, classes=3, rng=rng)


def test_vectors_go_there_and_back_in_every_dtype_and_overflow_is_infinite() -> None:
    schema = TensorSchema.of([
        TensorSpec(name="a", dtype=DType.FLOAT32, shape=(3,)),
        TensorSpec(name="b", dtype=DType.FLOAT16, shape=(2, 2)),
        TensorSpec(name="c", dtype=DType.FLOAT64, shape=()),
    ])  # fmt: skip
    flat = np.array([1.5, -2.0, 0.25, 4.0, 8.0, -16.0, 0.5, 3.0])
    np.testing.assert_array_equal(flat_of(schema, buffer_of(schema, flat)), flat)
    assert np.isinf(flat_of(schema, buffer_of(schema, flat * 1e300))).sum() >= 7
