"""Which methods there are, and which experiments they accept: each refusal says what to do instead."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

from federation import Experiment, SupervisedTask
from federation.algorithms import Algorithm, algorithm_names, check, load_algorithm, registry
from federation.algorithms.fedavg import FedAvg
from federation.errors import ConfigurationError, PlanError
from federation.plan import ExperimentSpec, Plan, TensorRow
from federation.tensors import DType, TensorRole


class Mine(Algorithm):
    """A researcher's own."""

    name: ClassVar[str] = "mine"
    title: ClassVar[str] = "Mine"
    source: ClassVar[str] = "unpublished"
    strength: float = 1.0


def _spec(*, dtype: DType = DType.FLOAT32, tensors: tuple[TensorRow, ...] = (), **plan: Any) -> ExperimentSpec:
    made = Plan(evaluate_every=0, **plan)
    algorithm = load_algorithm(made, Mine())
    uplink, downlink = algorithm.payload_rows(made)
    weight = TensorRow(name="weight", dtype=dtype, shape=(200,), role=TensorRole.PARAMETER)
    return ExperimentSpec(
        name="try", shard="none", plan=made, tensors=(*tensors, weight), uplink=uplink, downlink=downlink
    )


def _installed(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Make entry points as an operator's installed plugins would."""

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        found = [EntryPoint(name=key, value=value, group=group) for key, value in values.items()]
        return [entry for entry in found if name is None or entry.name == name]

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_finds_methods_by_name_with_the_plans_options():
    algorithm = load_algorithm(Plan(algorithm="scaffold", options={"option": 2}))
    assert (algorithm.name, algorithm.options()) == ("scaffold", {"option": 2})


def test_an_unknown_name_says_which_there_are_and_which_is_near():
    with pytest.raises(PlanError, match=r"no algorithm 'scafold' here.*did you mean 'scaffold'\?.*simulate it"):
        load_algorithm(Plan(algorithm="scafold"))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("scaffold", {"option": 3}, r"option: Input should be 1 or 2 \(got '3'\); its options are: option"),
        ("fedprox", {"nu": 1.0}, r"nu: Extra inputs are not permitted.*its options are: mu, gamma"),
        ("fedavg", {"mu": 1.0}, "its options are: none"),
        ("fedprox", {"mu": -1.0}, "greater than or equal to 0"),
    ],
)
def test_options_that_do_not_fit_are_named(name, options, text):
    with pytest.raises(PlanError, match=f"options of algorithm '{name}' are not valid: .*{text}"):
        load_algorithm(Plan(algorithm=name, options=options))


def test_ones_own_method_serves_under_its_name_with_the_plans_options():
    plan = Plan(algorithm="mine", options={"strength": 2.0})
    algorithm = load_algorithm(plan, Mine(strength=5.0))
    assert isinstance(algorithm, Mine)
    assert algorithm.strength == 2.0
    with pytest.raises(PlanError, match="no algorithm 'mine' here"):
        load_algorithm(plan)


def test_built_in_names_cannot_be_taken():
    class Impostor(FedAvg):
        """Calls itself fedavg."""

    assert type(load_algorithm(Plan(), Impostor())) is FedAvg


def test_a_method_of_ones_own_that_would_run_as_another_is_refused():
    task = SupervisedTask(loss="mse", optimizer="sgd")

    class Tuned(FedAvg):
        """Inherits its name, and would run as plain FedAvg."""

    class Nameless(Algorithm):
        """Has none."""

    for method, text in (
        (Tuned(), r"Tuned is called 'fedavg', which is FedAvg of.*set the class attribute name"),
        (Nameless(), r"Nameless has no name: set the class attribute"),
    ):
        with pytest.raises(PlanError, match=text):
            Experiment(name="try", model=dict, task=task, shard="none", algorithm=method)


def test_plugins_the_operator_installed_are_found(monkeypatch):
    _installed(monkeypatch, other="federation.algorithms.fedavg:FedAvg", fedavg="nowhere:Nothing")
    assert "other" in algorithm_names()
    assert load_algorithm(Plan(algorithm="other")) == FedAvg()
    assert load_algorithm(Plan()) == FedAvg()


@pytest.mark.parametrize("value", ["nowhere:Nothing", "federation.plan:Plan"])
def test_a_plugin_that_is_broken_or_no_algorithm_is_the_operators_to_mend(monkeypatch, value):
    _installed(monkeypatch, other=value)
    with pytest.raises(ConfigurationError, match=r"algorithm 'other' \("):
        load_algorithm(Plan(algorithm="other"))


def test_every_method_is_listed_under_the_name_it_says():
    assert {name: method.name for name, method in registry.BUILT_IN.items()} == {
        name: name for name in registry.BUILT_IN
    }


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_method_accepts_a_plain_plan_once_it_has_what_it_needs(name):
    needs = {"fixed_time": {"local_seconds": 1.0}, "fedper": {"local": ("head",)}, "fedrep": {"local": ("head",)}}
    head = TensorRow(name="head", dtype=DType.FLOAT32, shape=(2,), role=TensorRole.LOCAL)
    check(_spec(algorithm=name, tensors=(head,) if "local" in needs.get(name, {}) else (), **needs.get(name, {})))


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({"algorithm": "diana", "rule": "krum"}, "'diana' sums what sites send and cannot stand behind rule 'krum'"),
        ({"algorithm": "fednova", "rule": "median"}, "cannot stand behind rule 'median'; use rule 'mean'"),
        ({"algorithm": "fednova", "max_share": 1.0}, "the steps it says it took, which max_share does not bound"),
        ({"algorithm": "scaffold", "rule": "median"}, "averages control of the sites beside their changes, and what"),
        ({"algorithm": "ef21", "error_feedback": True}, "error_feedback must be off: algorithm 'ef21' carries its own"),
        ({"compression": "rand_k:5", "error_feedback": True}, "is unbiased; error_feedback is for biased codecs"),
        ({"compression": "randk:5"}, "no codec 'randk' here.*did you mean 'rand_k'"),
        ({"downlink": "randk:5"}, "no codec 'randk' here"),
        (
            {"algorithm": "fedavgm", "compression": "dgc:0.1"},
            "momentum of momentum; write it 'dgc:0.1,0', or use fedavg",
        ),
        (
            {"algorithm": "diana", "options": {"alpha": 0.5}, "compression": "rand_k:0.25"},
            r"diverges from 2/\(1\+ω\) on, which is 0.5 with compression 'rand_k:0.25'.*leave alpha out for 0.25",
        ),
        ({"downlink": "dgc:0.1"}, "momentum correction is for gradients that sites send.*use top_k or stc"),
        ({"downlink": "natural", "algorithm": "fedbuff"}, "'fedbuff' is asynchronous.*leave downlink out"),
        (
            {"downlink": "natural", "algorithm": "marina"},
            "last two models, and downlink 'natural' lets sites hold another",
        ),
        ({"downlink": "natural", "algorithm": "feddyn"}, "adds up in h how far.*leave downlink out"),
        ({"algorithm": "fedprox", "options": {"gamma": 0.5}, "local_steps": 5}, "give local_epochs, not local_steps"),
        (
            {"algorithm": "fedprox", "options": {"gamma": 0.5}, "local_seconds": 5},
            "give local_epochs, not local_seconds",
        ),
        ({"algorithm": "fedsgd", "optimizer_state": "keep"}, "does not train with the task's optimizer"),
        (
            {"algorithm": "fednova", "options": {"momentum": 0.9}, "optimizer_state": "keep"},
            "does not train with the task's optimizer, whose state optimizer_state 'keep'",
        ),
        ({"algorithm": "fixed_time"}, "needs a time budget: set local_seconds"),
        ({"algorithm": "fednova", "options": {"mu": 1.0, "momentum": 0.5}}, "takes momentum or mu, not both"),
        ({"algorithm": "fednova", "options": {"mu": 200.0}}, "learning_rate · mu below 1, got 2"),
        ({"algorithm": "feddyn", "server_learning_rate": 0.5}, "leave server_learning_rate at 1"),
        ({"algorithm": "qfedavg", "server_schedule": "cosine"}, "leave server_learning_rate at 1"),
        ({"algorithm": "marina", "local_schedule": "cosine"}, "set local_schedule = 'constant'"),
        ({"algorithm": "marina", "quorum": 1}, "leave quorum out"),
        ({"algorithm": "marina", "optimizer_state": "keep"}, "set optimizer_state = 'reset'"),
        ({"algorithm": "fedper"}, "name its tensors in local"),
        ({"algorithm": "fedrep"}, "name its tensors in local"),
        ({"sites": 4, "quorum": 3, "max_share": 0.3}, "may close with 3 updates.*raise max_share to 0.333333"),
        ({"sites": 4, "quorum": 3, "max_share": 0.5, "algorithm": "fedbuff"}, "may close with 1 updates"),
        ({"sites": 4, "quorum": 3, "max_share": 0.5, "algorithm": "qfedavg"}, "weighs sites by their loss"),
    ],
    ids=str,
)
def test_unsound_combinations_are_refused_with_advice(plan, text):
    with pytest.raises(PlanError, match=text):
        check(_spec(**plan))


def test_feddyn_takes_codecs_that_keep_at_least_half_of_a_change():
    for codec in ("natural", "drive", "eden:2", "int8:64", "float16", "bfloat16", "top_k:0.5", "rand_k:0.5", "qsgd:64"):
        check(_spec(algorithm="feddyn", compression=codec))
    for codec in ("rand_k:0.25", "top_k:0.25", "stc:0.5", "powersgd:1", "terngrad", "bernoulli:0.25"):
        with pytest.raises(PlanError, match=r"'feddyn' adds up what sites send, and diverges under compression"):
            check(_spec(algorithm="feddyn", compression=codec))


def test_ef21_takes_every_codec_but_one_with_momentum_of_its_own():
    for codec in ("top_k:0.1", "powersgd:2", "int8:64", "rand_k:0.1"):
        check(_spec(algorithm="ef21", compression=codec))
    with pytest.raises(PlanError, match=r"'dgc:0.1' keeps a feedback of its own, and so does algorithm 'ef21'"):
        check(_spec(algorithm="ef21", compression="dgc:0.1"))


def test_fedcurv_takes_codecs_that_keep_each_coordinate_to_its_own_size():
    for codec in ("identity", "float16", "bfloat16:stochastic"):
        check(_spec(algorithm="fedcurv", compression=codec))
    for codec in ("top_k:0.5", "rand_k:0.5", "natural", "int8:64", "eden:4", "qsgd:16"):
        with pytest.raises(PlanError, match=r"changes the two unlike.*use 'bfloat16' or 'float16', leave compression"):
            check(_spec(algorithm="fedcurv", compression=codec))


@pytest.mark.parametrize("name", ["diana", "marina"])
def test_methods_for_unbiased_codecs_refuse_biased_ones(name):
    with pytest.raises(PlanError, match=r"needs an unbiased codec, and 'top_k:0\.1' is biased: use ef21"):
        check(_spec(algorithm=name, compression="top_k:0.1"))


def test_differences_of_gradients_in_half_precision_are_refused():
    with pytest.raises(PlanError, match=r"gradients, which are rounding.*as 'weight' is: use first_order"):
        check(_spec(algorithm="per_fedavg", options={"variant": "hessian_free"}, dtype=DType.BFLOAT16))
    check(_spec(algorithm="per_fedavg", dtype=DType.BFLOAT16))
    check(_spec(algorithm="per_fedavg", options={"variant": "hessian_free"}))


def test_fedbn_lists_the_layers_that_must_stay_local():
    layers = [
        TensorRow(name=f"{layer}.{part}", dtype=DType.FLOAT32, shape=(4,), role=role)
        for layer in ("bn1", "bn2")
        for part, role in (("bias", TensorRole.PARAMETER), ("running_mean", TensorRole.BUFFER))
    ]
    with pytest.raises(PlanError, match=r"add \['bn1\.\*', 'bn2\.\*'\] to local"):
        check(_spec(algorithm="fedbn", tensors=tuple(layers)))
    local = tuple(row.model_copy(update={"role": TensorRole.LOCAL}) for row in layers)
    check(_spec(algorithm="fedbn", tensors=local, local=("bn1.*", "bn2.*")))


def test_an_experiment_packed_for_other_payloads_is_refused():
    spec = _spec(algorithm="scaffold")
    with pytest.raises(PlanError, match="packed for another version of algorithm 'scaffold'"):
        check(spec.model_copy(update={"uplink": ()}))


def test_payload_rows_carry_the_plans_codec_for_vectors_and_none_for_scalars():
    uplink, downlink = load_algorithm(Plan(algorithm="scaffold")).payload_rows(Plan(compression="rand_k:5"))
    assert [(row.name, row.like, row.codec) for row in uplink] == [("control", "parameters", "rand_k:5")]
    assert [(row.name, row.like, row.codec) for row in downlink] == [("control", "parameters", "identity")]
    (scalars,), _ = load_algorithm(Plan(algorithm="qfedavg")).payload_rows(Plan(compression="rand_k:5"))
    assert (scalars.name, scalars.codec, [row.name for row in scalars.tensors]) == ("scalars", "identity", ["loss"])


def test_only_methods_that_change_the_sites_work_need_a_problem():
    without = {"dcgd", "fedadagrad", "fedadam", "fedasync", "fedavg", "fedavgm", "fedbuff", "fednova", "fedper"}
    without |= {"fedyogi", "stale"}
    assert {name for name, method in registry.BUILT_IN.items() if not method().needs_problem} == without
    for plan in (
        {"algorithm": "fednova", "options": {"momentum": 0.5}},
        {"algorithm": "fedasync", "options": {"rho": 1}},
    ):
        assert load_algorithm(Plan(**plan)).needs_problem


def test_personal_methods_report_every_metric_twice():
    assert load_algorithm(Plan(algorithm="ditto")).metric_names(("loss", "f1")) == (
        "loss", "f1", "personal_loss", "personal_f1",
    )  # fmt: skip
    assert load_algorithm(Plan()).metric_names(("loss",)) == ("loss",)


def test_a_rule_is_checked_for_the_fewest_updates_a_round_may_close_with() -> None:
    stands = {"rule": "trimmed_mean", "byzantine": 2, "sites": 8}
    check(_spec(**stands, quorum=5))
    check(_spec(**stands, minimum_sites=5))
    for plan in ({"quorum": 4}, {"minimum_sites": 4}, {"minimum_sites": 8, "sample": 4}):
        with pytest.raises(PlanError, match=r"needs 5 updates or more and has 4.*may close with 4: raise quorum"):
            check(_spec(**stands, **plan))
    with pytest.raises(PlanError, match=r"may close with 1: raise quorum"):
        check(_spec(**stands, minimum_sites=8, sampler="poisson:0.9"))


@pytest.mark.parametrize(
    ("plan", "advice", "followed"),
    [
        ({"sites": 10, "quorum": 8}, "to 11, and with it sites (10), which", {"sites": 11, "quorum": 11}),
        (
            {"sites": 10, "minimum_sites": 10},
            "to 11, and with it sites (10), which",
            {"sites": 11, "minimum_sites": 11},
        ),
        (
            {"minimum_sites": 9, "quorum": 9},
            "to 11, and with it minimum_sites (9), which",
            {"minimum_sites": 11, "quorum": 11},
        ),
        ({"sites": 20, "sample": 9}, "to 11, and with it sample (9), which", {"sample": 11, "minimum_sites": 11}),
        ({"sites": 20, "quorum": 9}, "to 11; or", {"quorum": 11}),
        ({"sites": 10, "quorum": 9, "pre_aggregation": ("bucketing:2",)}, "to 21, and", {"sites": 21, "quorum": 21}),
    ],
)
def test_what_to_raise_for_a_rule_is_said_with_all_that_must_grow_and_how_far(
    plan: dict[str, Any], advice: str, followed: dict[str, Any]
) -> None:
    stands = {"rule": "krum", "byzantine": 4}
    with pytest.raises(PlanError, match=re.escape(advice)):
        check(_spec(**stands, **plan))
    check(_spec(**{**stands, **plan, **followed}))


def test_an_asynchronous_method_may_step_with_one_update_which_no_rule_stands_an_attacker_in() -> None:
    with pytest.raises(PlanError, match=r"'fedbuff' is asynchronous, and a step of it may be of a single update"):
        check(_spec(algorithm="fedbuff", rule="median", byzantine=1, quorum=5, sites=5))
    check(_spec(algorithm="fedbuff", pre_aggregation=("clipping:1.0",)))


def test_a_method_that_sums_takes_no_pre_aggregation_either() -> None:
    with pytest.raises(PlanError, match="behind rule 'mean' with pre_aggregation; use rule 'mean' alone"):
        check(_spec(algorithm="fednova", pre_aggregation=("clipping:1.0",)))


def test_a_trusted_site_must_be_asked_in_every_round() -> None:
    trusting = {"rule": "fltrust", "rule_options": {"trusted": "north"}, "sites": 5, "quorum": 3}
    check(_spec(**trusting))
    for plan in ({"sample": 4}, {"quorum": None, "sampler": "poisson:0.9"}, {"algorithm": "fedbuff"}):
        with pytest.raises(PlanError, match="trusts site 'north', which must then be asked in every round"):
            check(_spec(**{**trusting, **plan}))


def test_a_rule_that_keeps_a_vector_refuses_half_precision() -> None:
    with pytest.raises(PlanError, match=r"rule 'centered_clipping' keeps a vector per parameter"):
        check(_spec(rule="centered_clipping", dtype=DType.BFLOAT16))
    check(_spec(rule="median", dtype=DType.BFLOAT16))


def test_buffers_and_optimizer_state_that_would_pass_beside_the_rule_are_refused() -> None:
    stands = {"rule": "trimmed_mean", "byzantine": 2, "sites": 8, "minimum_sites": 8}
    running = TensorRow(name="bn.running_mean", dtype=DType.FLOAT32, shape=(4,), role=TensorRole.BUFFER)
    count = TensorRow(name="bn.num_batches_tracked", dtype=DType.INT64, shape=(), role=TensorRole.BUFFER)
    trusting = {"rule": "fltrust", "rule_options": {"trusted": "north"}, "sites": 5}
    robust: list[dict[str, Any]] = [{"rule": "median"}, {"pre_aggregation": ("clipping:1.0",)}, trusting, stands]
    for plan in robust:
        for buffer in (running, count):
            with pytest.raises(PlanError, match=r"averaged whatever the rule.*list them in local, for example local="):
                check(_spec(tensors=(buffer,), **plan))
            check(_spec(tensors=(buffer.model_copy(update={"role": TensorRole.LOCAL}),), **plan))
        spec = _spec(**plan)
        aggregating = spec.model_copy(update={"plan": spec.plan.model_copy(update={"optimizer_state": "aggregate"})})
        with pytest.raises(PlanError, match=r"optimizer_state 'aggregate' is the mean.*use optimizer_state 'reset'"):
            check(aggregating)


CLIPPED_MEAN = {"rule": "mean", "byzantine": 2, "pre_aggregation": ("arc",), "sites": 10, "minimum_sites": 10}


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({}, "weighs by examples, which are the sites' word: set weighting 'uniform', or max_share below 0.25"),
        ({"max_share": 0.25}, "2 hostile at max_share 0.25 may weigh half or more: set weighting 'uniform'"),
        ({"pre_aggregation": ("nnm",), "weighting": "uniform"}, "unless updates are clipped before it.*add 'arc'"),
        ({"pre_aggregation": ("bucketing:2",), "weighting": "uniform"}, "unless updates are clipped before it"),
        ({"quorum": 4, "weighting": "uniform"}, "'arc' stands byzantine = 2 only where 2f < n"),
        (
            {"quorum": 4, "weighting": "uniform", "pre_aggregation": ("clipping:1.0",)},
            "only where 2f < n: it needs 5 updates or more and has 4",
        ),
    ],
    ids=str,
)
def test_a_mean_that_a_claim_or_a_length_could_buy_stands_no_hostile_site(plan, text) -> None:
    with pytest.raises(PlanError, match=text):
        check(_spec(**{**CLIPPED_MEAN, **plan}))


def test_a_mean_of_clipped_updates_that_weigh_alike_or_are_capped_is_accepted() -> None:
    check(_spec(**CLIPPED_MEAN, weighting="uniform"))
    check(_spec(**CLIPPED_MEAN, max_share=0.2))
    check(_spec(**{**CLIPPED_MEAN, "pre_aggregation": ("nnm", "clipping:1.0"), "weighting": "uniform"}))
