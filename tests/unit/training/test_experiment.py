from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from federation import BestModel, Experiment, Plan, SupervisedTask
from federation.errors import PlanError
from federation.storage.safetensors_files import write_model
from federation.tensors import DType, TensorRole
from federation.training.models import adapt


class Task:
    def train(self, model, data, round):
        return {"loss": 0.0}

    def evaluate(self, model, data):
        return {"loss": 0.0}


def _model() -> dict[str, np.ndarray]:
    return {"w": np.random.normal(size=3), "head.w": np.zeros(2, np.float32), "steps": np.zeros((), np.int64)}


def _experiment(**changes) -> Experiment:
    fields = {"name": "trial", "model": _model, "task": Task(), "shard": "patients", "plan": Plan()}
    return Experiment(**{**fields, **changes})


def test_importing_an_experiment_does_not_import_torch() -> None:
    code = (
        "import sys, federation; federation.Experiment, federation.SupervisedTask; import federation.trainer.process\n"
    )
    code += "sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_roles_follow_from_model_and_plan() -> None:
    spec, arrays = _experiment(plan=Plan(local=("head.*",))).build()
    roles = {row.name: row.role for row in spec.tensors}
    assert roles == {"w": TensorRole.PARAMETER, "head.w": TensorRole.LOCAL, "steps": TensorRole.BUFFER}
    assert {row.name: row.dtype for row in spec.tensors}["w"] is DType.FLOAT64
    assert arrays.keys() == roles.keys()


def test_equal_seeds_give_equal_models_and_leave_the_callers_generator_alone() -> None:
    np.random.seed(5)
    first, second, other = (_experiment().build(seed).arrays["w"].tolist() for seed in (1, 1, 2))
    assert first == second != other
    after = np.random.random()
    np.random.seed(5)
    assert np.random.random() == after


def test_the_seed_that_was_asked_for_is_the_one_that_is_signed() -> None:
    assert _experiment().build(77).spec.plan.seed == 77


def test_a_dictionary_is_copied_so_that_training_does_not_change_what_the_author_holds() -> None:
    mine = {"w": np.zeros(3)}
    built = _experiment(model=mine).build()
    built.arrays["w"][:] = 1
    assert mine["w"].sum() == 0


class LikeAModule:
    """What an author has who writes ``model=Net()`` for ``model=Net``: it can be called, on samples."""

    def __call__(self, samples: object) -> object:
        return samples

    def state_dict(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "a/b"}, "experiment name 'a/b'"),
        ({"shard": "Patients"}, "shard kind"),
        ({"project": ""}, "project"),
        ({"model": 3}, "model is a int"),
        ({"model": LikeAModule()}, "model is a LikeAModule; give a callable that makes it"),
        ({"task": object()}, "has no method 'train'"),
    ],
)
def test_an_argument_that_is_wrong_is_refused_at_once(changes, says) -> None:
    with pytest.raises(PlanError, match=says):
        _experiment(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": lambda: 3}, "the model is a int"),
        ({"model": lambda: 1 / 0}, "ZeroDivisionError"),
        ({"model": lambda: {"w": [1.0]}}, "model entry 'w' is a list"),
        ({"model": lambda: {"w": np.zeros(1, complex)}}, "'w'.*complex128"),
        ({"model": lambda: {"w": np.zeros(1, int)}}, "nothing would be learnt"),
        ({"model": lambda: {"w": np.array([0.0, np.nan])}}, "'w' of the initial model has values that are not finite"),
        ({"model": lambda: {"w": np.full(1, np.inf, DType.BFLOAT16.numpy)}}, "not finite"),
        ({"model": lambda: {"w" * 300: np.zeros(1)}}, "1 to 256 bytes"),
        ({"plan": Plan(local=("*",))}, "nothing would be learnt"),
        ({"plan": Plan(best=BestModel(metric="auc", direction="max"))}, "best metric 'auc'"),
        ({"plan": Plan(optimizer_state="aggregate")}, "no method optimizer_tensors"),
        ({"metrics": ("not a name",)}, "not valid"),
    ],
)
def test_what_does_not_go_together_is_refused_at_home(changes, says) -> None:
    with pytest.raises(PlanError, match=says):
        _experiment(**changes).build()


def test_what_stays_at_the_sites_may_hold_infinities_such_as_a_mask() -> None:
    model = {"w": np.zeros(2), "mask": np.array([0.0, -np.inf])}
    assert _experiment(model=model, plan=Plan(local=("mask",))).build().arrays["mask"][1] == -np.inf


@pytest.mark.needs_torch
def test_frozen_parameters_are_local_and_batch_norm_statistics_buffers() -> None:
    from torch import nn

    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        made[0].weight.requires_grad_(False)
        return made

    roles = {row.name: row.role.value for row in _experiment(model=model).build().spec.tensors}
    assert roles == {
        "0.weight": "local",
        "0.bias": "parameter",
        "1.weight": "parameter",
        "1.bias": "parameter",
        "1.running_mean": "buffer",
        "1.running_var": "buffer",
        "1.num_batches_tracked": "buffer",
    }


@pytest.mark.needs_torch
def test_torch_models_are_made_under_the_seed() -> None:
    from torch import nn

    def weights(seed: int) -> list[float]:
        return _experiment(model=lambda: nn.Linear(3, 1)).build(seed).arrays["weight"].ravel().tolist()

    assert weights(1) == weights(1) != weights(2)


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        ("adam", {}, {"bias/exp_avg", "bias/exp_avg_sq", "bias/step"}),
        ("sgd", {"momentum": 0.9}, {"bias/momentum_buffer"}),
    ],
)
def test_aggregated_optimizer_state_is_that_of_federated_parameters(optimizer, options, expected) -> None:
    from torch import nn

    from federation import SupervisedTask

    task = SupervisedTask(optimizer=optimizer, optimizer_options=options)
    plan = Plan(optimizer_state="aggregate", local=("weight",))
    spec = _experiment(model=lambda: nn.Linear(3, 1), task=task, plan=plan).build().spec
    assert {row.name for row in spec.optimizer_tensors} == expected
    assert {row.role for row in spec.optimizer_tensors} == {TensorRole.BUFFER}


@pytest.mark.needs_torch
def test_aggregating_the_state_of_an_optimizer_that_has_none_is_refused() -> None:
    from torch import nn

    from federation import SupervisedTask

    plan = Plan(optimizer_state="aggregate")
    with pytest.raises(PlanError, match="has none"):
        _experiment(model=lambda: nn.Linear(3, 1), task=SupervisedTask(), plan=plan).build()


class Problem(Task):
    """A task that could be corrected."""

    def problem(self, model, data, round):
        raise AssertionError("building an experiment runs no task")


def test_an_algorithm_object_becomes_part_of_the_plan_and_its_payloads_of_the_spec() -> None:
    from federation.algorithms.scaffold import Scaffold

    experiment = _experiment(task=Problem(), model=lambda: {"w": np.zeros(3)}, algorithm=Scaffold(option=2))
    spec = experiment.build().spec
    assert (spec.plan.algorithm, spec.plan.options) == ("scaffold", {"option": 2})
    assert [plan.name for plan in spec.uploads()] == ["delta", "control"]
    assert [plan.name for plan in spec.downloads()] == ["control"]


def test_a_plan_names_an_algorithm_as_well() -> None:
    plan = Plan(algorithm="ditto", options={"strength": 0.5})
    spec = _experiment(task=Problem(), plan=plan).build().spec
    assert spec.metrics == ("loss", "personal_loss")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param({"plan": Plan(algorithm="scaffold")}, r"task Task has no method problem\(\)", id="no problem"),
        pytest.param({"plan": Plan(estimator="full")}, "estimator 'full' draws its batches", id="estimator"),
        pytest.param({"plan": Plan(algorithm="scafold")}, "scaffold", id="typo"),
        pytest.param({"algorithm": "scaffold"}, "algorithm is a str; give an Algorithm", id="name as object"),
        pytest.param({"data": 3}, "data is a int; give a callable", id="data"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_way_out(changes, text) -> None:
    with pytest.raises(PlanError, match=text):
        _experiment(**changes).build()


def test_the_whole_dataset_is_not_part_of_what_is_signed() -> None:
    with_data, without = _experiment(data="module:Whole"), _experiment()
    assert with_data.data == "module:Whole"
    assert with_data.build().spec.digest == without.build().spec.digest


@pytest.mark.parametrize(
    ("algorithm", "task", "says"),
    [
        ("fednova", SupervisedTask(optimizer="adam"), "known for SGD; the task uses adam: use optimizer 'sgd'"),
        (
            "fednova",
            SupervisedTask(optimizer_options={"momentum": 0.9}),
            "must know of momentum, and the task uses sgd, momentum=0.9: set option momentum to 0.9",
        ),
        ("scaffold", SupervisedTask(optimizer="adam"), "option 2 needs plain SGD; the task uses adam: set option = 1"),
    ],
)
def test_an_optimizer_the_method_does_not_hold_for_is_refused_at_the_authors_desk(algorithm, task, says) -> None:
    options = {"option": 2} if algorithm == "scaffold" else {}
    with pytest.raises(PlanError, match=says):
        _experiment(task=task, plan=Plan(algorithm=algorithm, options=options)).build()


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({}, SupervisedTask(optimizer_options={"weight_decay": 0.01})),
        ({"momentum": 0.9}, SupervisedTask(optimizer="adam")),
    ],
)
def test_fednova_takes_sgd_and_momentum_by_its_option(options, task) -> None:
    built = _experiment(task=task, plan=Plan(algorithm="fednova", options=options)).build()
    assert built.spec.plan.options == options


@pytest.mark.needs_torch
def test_a_model_that_comes_out_is_loaded_as_the_documents_say(tmp_path) -> None:
    nn = pytest.importorskip("torch.nn")
    from safetensors.torch import load_model

    class Net(nn.Module):
        """Half precision, a buffer, and an output layer tied to the input: one tensor under two names."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 4).bfloat16(), nn.BatchNorm1d(4), nn.Linear(4, 4).bfloat16()
            self.last.weight = self.first.weight

    spec, arrays = _experiment(model=Net).build(1)
    write_model(tmp_path / "best.safetensors", spec.schema_, arrays)
    model = Net()
    missing, unexpected = load_model(model, tmp_path / "best.safetensors")
    assert (list(missing), list(unexpected)) == ([], [])
    loaded = adapt(model).arrays()
    assert {name for name in arrays if not np.array_equal(loaded[name], arrays[name])} == set()
