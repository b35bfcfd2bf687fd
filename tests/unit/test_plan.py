"""Plans and experiment specs: sound ones are frozen data, others are refused with every reason."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import PlanError
from federation.plan import (
    BestModel,
    EarlyStopping,
    ExperimentSpec,
    PayloadRow,
    Plan,
    TensorRow,
    check_metrics,
    tensor_rows,
)
from federation.tensors import DType, TensorRole, TensorSchema, TensorSpec

SCHEMA = TensorSchema.of(
    [
        TensorSpec(name="body.weight", dtype=DType.FLOAT32, shape=(3, 4)),
        TensorSpec(name="body.count", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER),
        TensorSpec(name="head.weight", dtype=DType.FLOAT32, shape=(4,)),
    ]
)
OPTIMIZER = TensorSchema.of([TensorSpec(name="momentum", dtype=DType.FLOAT32, shape=(3,))])


def spec(**changes: Any) -> ExperimentSpec:
    values: dict[str, Any] = {"name": "digits", "shard": "digits", "plan": {}, "tensors": tensor_rows(SCHEMA)}
    return ExperimentSpec.parse({**values, **changes})


PLANS = st.builds(
    Plan,
    rounds=st.integers(1, 1000),
    minimum_sites=st.integers(1, 5),
    deadline_s=st.floats(0.1, 1e6),
    local_steps=st.none() | st.integers(1, 100),
    learning_rate=st.floats(1e-6, 10),
    seed=st.integers(0, 2**63 - 1),
    evaluate_every=st.integers(0, 5),
    optimizer_state=st.sampled_from(["reset", "keep"]),
    local=st.sampled_from([(), ("head.*",)]),
    max_norm=st.none() | st.floats(0.1, 100),
)


def test_a_plan_without_arguments_is_sound() -> None:
    plan = Plan()
    assert plan.epochs == 1
    assert plan.sites_wanted == 1


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rounds": 0}, r"rounds: .* \(got '0'\)"),
        ({"rouns": 3}, "rouns"),
        ({"local_epochs": 1, "local_steps": 1}, "not both"),
        ({"sites": 2, "minimum_sites": 3}, "fewer than minimum_sites"),
        ({"sites": 3, "sample": 4}, "sample is 4"),
        ({"sites": 3, "quorum": 4}, "quorum is 4"),
        ({"sites": 5, "sample": 3, "quorum": 4}, "more than the 3 sites asked"),
        ({"evaluate_every": 0, "early_stopping": {"patience": 2}}, "early_stopping needs evaluations"),
        ({"evaluate_every": 0, "best": {"metric": "accuracy", "direction": "max"}}, "best chooses by evaluations"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"deadline_s": math.inf}, "deadline_s"),
        ({"max_norm": -1.0}, "max_norm"),
        ({"max_share": 0.0}, "max_share"),
        ({"max_share": 1.5}, "max_share"),
        ({"max_norm_ratio": 0.5}, "max_norm_ratio"),
        ({"seed": 2**63}, "seed"),
        ({"optimizer_state": "forget"}, "optimizer_state"),
        ({"weighting": "loud"}, "weighting"),
        ({"rule": "../mean"}, "aggregation rule"),
        ({"best": {"metric": "a b"}}, "best.metric"),
        ({"best": {"direction": "up"}}, "best.direction"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_plan_that_is_not_sound_is_refused_by_name(values: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        Plan(**values)


def test_every_fault_of_a_plan_is_named_at_once() -> None:
    with pytest.raises(PlanError, match=r"rounds.*threads|threads.*rounds"):
        Plan(rounds=0, threads=0)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Plan().rounds = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("every", "rounds", "evaluated"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (0, 3, []), (9, 3, [3])]
)
def test_every_kth_round_and_the_last_are_evaluated(every: int, rounds: int, evaluated: list[int]) -> None:
    plan = Plan(rounds=rounds, evaluate_every=every)
    assert [number for number in range(1, rounds + 1) if plan.is_evaluated(number)] == evaluated


@pytest.mark.parametrize(
    ("federated", "local", "name", "is_trained", "role"),
    [
        (("*",), (), "head.weight", True, TensorRole.PARAMETER),
        (("*",), (), "head.count", False, TensorRole.BUFFER),
        (("*",), ("head.*",), "head.weight", True, TensorRole.LOCAL),
        (("head.*",), (), "body.weight", True, TensorRole.LOCAL),
        (("head.*",), (), "head.weight", True, TensorRole.PARAMETER),
        (("HEAD.*",), (), "head.weight", True, TensorRole.LOCAL),
    ],
)
def test_patterns_decide_what_leaves_a_silo(
    federated: tuple[str, ...], local: tuple[str, ...], name: str, is_trained: bool, role: TensorRole
) -> None:
    assert Plan(federated=federated, local=local).role_of(name, is_trained=is_trained) is role


def test_local_steps_replace_epochs() -> None:
    assert Plan(local_steps=7).epochs is None
    assert Plan(local_epochs=4).epochs == 4


def test_a_round_needs_the_larger_of_minimum_and_quorum() -> None:
    assert Plan(sites=5, minimum_sites=2, quorum=4).sites_needed == 4
    assert Plan(minimum_sites=3).sites_needed == 3


def test_the_best_model_has_a_direction() -> None:
    assert BestModel().is_better(0.5, None)
    assert BestModel().is_better(0.4, 0.5)
    assert not BestModel().is_better(0.5, 0.5)
    assert BestModel(metric="accuracy", direction="max").is_better(0.6, 0.5)
    assert not BestModel(metric="accuracy", direction="max").is_better(0.6, 0.55, by=0.1)


@given(PLANS)
def test_a_spec_comes_back_from_its_canonical_json_with_its_digest(plan: Plan) -> None:
    values = {} if not plan.local else {"tensors": tensor_rows(localised())}
    experiment = spec(plan=plan, **values)
    text = experiment.canonical_json()
    again = ExperimentSpec.parse(text)
    assert again == experiment
    assert again.canonical_json() == text
    assert again.digest == experiment.digest == hashlib.sha256(text).digest()
    assert ExperimentSpec.parse(json.loads(text)) == experiment
    assert text.isascii()


def localised() -> TensorSchema:
    return TensorSchema.of(
        TensorSpec(
            name=each.name,
            dtype=each.dtype,
            shape=each.shape,
            role=TensorRole.LOCAL if each.name.startswith("head") else each.role,
        )
        for each in SCHEMA
    )


def test_a_spec_gives_back_its_schema() -> None:
    assert spec().schema_ == SCHEMA
    aggregating = spec(plan={"optimizer_state": "aggregate"}, optimizer_tensors=tensor_rows(OPTIMIZER))
    assert aggregating.optimizer_schema == OPTIMIZER


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "a/b"}, "experiment name"),
        ({"shard": "Digits"}, "shard kind"),
        ({"project": ""}, "project"),
        ({"format": 2}, "format"),
        ({"tensors": tensor_rows(SCHEMA)[::-1]}, "canonical order"),
        ({"tensors": tensor_rows(SCHEMA) + tensor_rows(SCHEMA)[:1]}, "unique|canonical"),
        ({"tensors": ()}, "nothing would be learnt together"),
        ({"tensors": tensor_rows(SCHEMA.buffers)}, "nothing would be learnt together"),
        ({"plan": {"local": ["head.*"]}}, "keeps tensor 'head.weight' local"),
        ({"plan": {"local": ["haed.*"]}}, "'haed.*' matches no tensor"),
        ({"plan": {"optimizer_state": "aggregate"}}, "exactly when"),
        ({"optimizer_tensors": tensor_rows(OPTIMIZER)}, "exactly when"),
        ({"metrics": ("accuracy",)}, "best metric 'loss'"),
        ({"metrics": ("loss", "loss")}, "unique"),
        ({"metrics": ("loss", "a b")}, "metrics.1"),
        ({"metrics": tuple(f"m{index}" for index in range(65))}, "metrics"),
        ({"plan": {"rounds": 0}}, "rounds"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_spec_that_is_not_sound_is_refused(changes: dict[str, Any], text: str) -> None:
    document = json.loads(spec().canonical_json())
    as_json = {
        key: [row.model_dump(mode="json") for row in value] if key.endswith("tensors") else value
        for key, value in changes.items()
    }
    with pytest.raises(PlanError, match=text):
        ExperimentSpec.parse({**document, **as_json})


def test_an_integer_cannot_be_trained() -> None:
    rows = tensor_rows(TensorSchema.of([*SCHEMA.parameters, TensorSpec(name="counter", dtype=DType.INT32, shape=(2,))]))
    with pytest.raises(PlanError, match="float dtype"):
        spec(tensors=rows)


@pytest.mark.parametrize("text", [b"", b"nonsense", b"[]", b"null", b'{"name": 3}'], ids=repr)
def test_bytes_that_are_no_spec_are_a_plan_error(text: bytes) -> None:
    with pytest.raises(PlanError):
        ExperimentSpec.parse(text)


def test_metrics_are_those_the_plan_fixes_and_finite() -> None:
    assert check_metrics({"loss": 0.5}, ("loss", "accuracy")) == {"loss": 0.5}
    with pytest.raises(ValueError, match="not among those"):
        check_metrics({"patients": 12.0}, ("loss",))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not a finite number"):
            check_metrics({"loss": bad}, ("loss",))


def test_early_stopping_needs_patience() -> None:
    assert EarlyStopping(patience=1).min_delta == 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"local_seconds": 2.0, "local_epochs": 1}, "give local_epochs or local_seconds, not both"),
        ({"local_seconds": 0.0}, "local_seconds"),
        ({"server_learning_rate": 0.0}, "server_learning_rate"),
        ({"algorithm": "../fedavg"}, "algorithm"),
        ({"compression": "top_k:a b"}, "expected a name and its parameters"),
        ({"downlink": "Top_K"}, "downlink is 'Top_K'"),
        ({"sampler": ""}, "sampler is ''"),
        ({"server_schedule": "cosine:"}, "server_schedule"),
        ({"estimator": "subset:0"}, "expected minibatch, full or subset:SIZE"),
        ({"options": {"mu": [1]}}, "options.mu"),
        ({"options": {"mu": float("nan")}}, "options.mu"),
    ],
)
def test_a_method_that_is_not_written_as_one_is_refused(fields, text):
    with pytest.raises(PlanError, match=re.escape(text)):
        Plan(**fields)


@given(
    options=st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        max_size=4,
    )
)
def test_options_keep_value_and_type_on_the_wire(options):
    plan = Plan(algorithm="fedprox", options=options, compression="dithering:8,2", estimator="subset:64")
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan and again.options == options
    assert [type(value) for value in again.options.values()] == [type(value) for value in options.values()]


def test_fixed_time_training_may_have_a_cap_of_steps_and_has_no_epochs():
    assert Plan(local_seconds=1.5).epochs is None
    plan = Plan(local_seconds=1.5, local_steps=10)
    assert (plan.epochs, plan.local_steps) == (None, 10)


def test_a_methods_payloads_follow_the_models_own():
    control = PayloadRow(name="control", like="parameters", codec="rand_k:0.1")
    row = TensorRow(name="loss", dtype=DType.FLOAT64, shape=(), role=TensorRole.PARAMETER)
    made = spec(
        plan={"compression": "top_k:0.1"},
        uplink=(control, PayloadRow(name="scalars", tensors=(row,))),
        downlink=(PayloadRow(name="control", like="parameters"),),
    )
    schema = made.schema_
    names = ["delta", "buffers"] if schema.buffers.nbytes else ["delta"]
    assert [payload.name for payload in made.uploads()] == [*names, "control", "scalars"]
    delta, *_, sent, scalars = made.uploads()
    assert (delta.schema, delta.codec) == (schema.parameters, "top_k:0.1")
    assert (sent.schema, sent.codec) == (schema.parameters, "rand_k:0.1")
    assert (scalars.schema.nbytes, scalars.codec) == (8, "identity")
    assert [(payload.name, payload.codec) for payload in made.downloads()] == [("control", "identity")]
    assert ExperimentSpec.parse(made.canonical_json()) == made
    assert [payload.codec for payload in spec().uploads()] == ["identity"] * len(names)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"name": "delta", "like": "parameters"}, "payload name 'delta' is taken; choose another"),
        ({"name": "step", "like": "parameters"}, "is taken"),
        ({"name": "Control", "like": "parameters"}, "payload name"),
        ({"name": "control"}, "must be like the parameters or have tensors"),
        ({"name": "control", "like": "parameters", "codec": "rand k"}, "codec of payload 'control'"),
    ],
)
def test_a_payload_that_is_not_sound_is_refused(row, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        PayloadRow(**row)
    with pytest.raises(PlanError, match="payload names of the uplink must be unique"):
        spec(uplink=(PayloadRow(name="control", like="parameters"),) * 2)


def test_a_typo_in_a_field_names_the_nearest_one():
    with pytest.raises(PlanError, match=r"there is no 'round': did you mean 'rounds'\?"):
        Plan(round=3)
    with pytest.raises(PlanError, match=r"there is no 'zzz', only algorithm, best, byzantine"):
        Plan(zzz=3)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(math.inf, "a finite number"), (math.nan, "a finite number"), (None, "true or false, a number or text"),
     ([1], "true or false, a number or text")],
)  # fmt: skip
@pytest.mark.parametrize("field", ["options", "rule_options"])
def test_an_option_that_is_not_sound_is_one_problem(field: str, value: object, wanted: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**{field: {"tau": value}})
    assert str(caught.value) == f"the plan is not valid: {field}.tau: Input should be {wanted} (got '{value}')"
