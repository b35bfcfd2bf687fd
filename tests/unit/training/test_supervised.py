from __future__ import annotations

import random
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from federation import Experiment, Plan, SupervisedTask
from federation.data import ArrayShard, LocalData
from federation.errors import PlanError
from federation.names import PayloadName, SiteName
from federation.rounds.randomness import derive_seed
from federation.simulation.memory import Arena, Layout, MemoryExchange
from federation.tensors import DType, pack, unpack
from federation.training.context import RoundContext
from federation.training.loop import LocalWork
from federation.training.resident import Resident
from federation.training.state import StateStore
from federation.training.work import SiteWork

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
nn = torch.nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)


def _data(x: np.ndarray = X, y: np.ndarray = Y) -> LocalData:
    return LocalData(ArrayShard(train=(x, y), validation=(x, y)))


def _round(**changes: object) -> RoundContext:
    fields = {"number": 1, "site": SiteName("north"), "seed": 0, "epochs": 2, "steps": None, "learning_rate": 0.1}
    return RoundContext(**{**fields, "threads": 1, **changes})  # type: ignore[arg-type]


def _net(seed: int = 0, **kind: object) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8, **kind), nn.ReLU(), nn.Linear(8, 2, **kind))


def _flat(model: nn.Module) -> list[float]:
    return torch.cat([value.float().reshape(-1) for value in model.state_dict().values()]).tolist()


def test_training_follows_plain_gradient_descent_step_by_step() -> None:
    """Against brute force: a linear model, the whole data as one batch, the gradient written out."""
    weight = np.zeros(4)
    for _ in range(3):
        weight -= 0.1 * 2 * X.T.astype(np.float64) @ (X @ weight - Y) / len(X)
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    task = SupervisedTask("mse", "sgd", batch_size=40)
    task.train(model, _data(y=Y.astype(np.float32)), _round(epochs=3))
    assert model.weight.detach().numpy().ravel() == pytest.approx(weight, abs=1e-6)


def test_the_same_seed_round_and_site_give_the_same_update_and_others_another() -> None:
    def trained(**changes: object) -> list[float]:
        model = nn.Sequential(_net(), nn.Dropout(0.5))
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        SupervisedTask(batch_size=8).train(model, _data(), _round(**changes))
        return _flat(model)

    once = trained()
    assert once == trained()
    assert once != trained(number=2)
    assert once != trained(seed=1)
    assert once != trained(site=SiteName("south"))


def test_steps_are_counted_over_passes_and_exactly() -> None:
    data = _data()
    SupervisedTask(batch_size=16).train(_net(), data, _round(epochs=None, steps=5))
    assert data.batches_drawn == 5
    assert data.examples_used == 40
    data.start_count()
    SupervisedTask(batch_size=16).train(_net(), data, _round(epochs=None, steps=1))
    assert (data.batches_drawn, data.examples_used) == (1, 16)


def test_metrics_are_means_over_examples_whatever_the_batches() -> None:
    model = _net()
    whole = SupervisedTask(metrics=("accuracy",), evaluation_batch_size=40).evaluate(model, _data())
    parts = SupervisedTask(metrics=("accuracy",), evaluation_batch_size=7).evaluate(model, _data())
    assert parts == pytest.approx(whole)
    with torch.no_grad():
        output = model(torch.tensor(X))
    assert whole["accuracy"] == pytest.approx(float((output.argmax(1).numpy() == Y).mean()))
    assert whole["loss"] == pytest.approx(float(nn.functional.cross_entropy(output, torch.tensor(Y))))


@pytest.mark.parametrize("target", [Y, Y.astype(np.float32), Y.reshape(-1, 1)], ids=["int", "float", "column"])
def test_a_single_logit_learns_a_yes_or_no(target) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    task = SupervisedTask("bce_with_logits", metrics=("accuracy",), batch_size=8)
    task.train(model, _data(y=target), _round(epochs=60))
    assert task.evaluate(model, _data(y=target))["accuracy"] > 0.95


def test_a_callable_loss_optimizer_and_metric_are_used() -> None:
    def doubled(output, target):
        return 2 * nn.functional.cross_entropy(output, target)

    def half(output, target):
        return 0.5

    task = SupervisedTask(doubled, lambda parameters, rate: torch.optim.SGD(parameters, lr=rate), metrics=(half,))
    plain = SupervisedTask(evaluation_batch_size=40)
    model = _net()
    assert task.metric_names == ("loss", "half")
    assert task.evaluate(model, _data())["loss"] == pytest.approx(2 * plain.evaluate(model, _data())["loss"])
    assert task.train(model, _data(), _round())["half"] == 0.5


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_every_named_optimizer_lowers_the_loss(optimizer) -> None:
    model, task = _net(), SupervisedTask(optimizer=optimizer, batch_size=8)
    before = task.evaluate(model, _data())["loss"]
    task.train(model, _data(), _round(epochs=10, learning_rate=0.02))
    assert task.evaluate(model, _data())["loss"] < before


@pytest.mark.parametrize(
    "options",
    [{"loss": "hinge"}, {"optimizer": "lbfgs"}, {"metrics": ("auc",)}, {"batch_size": 0}],
    ids=str,
)
def test_an_unknown_choice_is_refused_when_the_task_is_made(options) -> None:
    with pytest.raises(PlanError):
        SupervisedTask(**options)


def test_an_option_the_optimizer_does_not_take_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="momentun"):
        SupervisedTask(optimizer_options={"momentun": 0.9}).train(_net(), _data(), _round())


def test_gradients_are_scaled_down_to_the_norm_asked_for() -> None:
    model = _net()
    before = _flat(model)
    SupervisedTask(max_gradient_norm=1e-3, batch_size=40).train(model, _data(), _round(epochs=1, learning_rate=1.0))
    moved = np.linalg.norm(np.subtract(_flat(model), before))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_a_frozen_backbone_does_not_change_in_any_tensor_while_training() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).requires_grad_(False)
            self.head = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2))

        def forward(self, x):
            return self.head(self.backbone(x))

    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    SupervisedTask().train(model, _data(), _round())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("head.")}


def test_batch_norm_survives_a_last_batch_of_one() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    SupervisedTask(batch_size=13).train(model, _data(X[:27], Y[:27]), _round())
    assert model[1].num_batches_tracked.item() == 4


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_keeping_optimizer_state_over_two_rounds_is_as_good_as_one_long_one(optimizer) -> None:
    """One batch per pass, so that shuffles do not matter: two rounds of one step equal one round of two."""
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    task = SupervisedTask(optimizer=optimizer, optimizer_options=options, batch_size=40)
    long, short = _net(), _net()
    task.train(long, _data(), _round(epochs=4))
    state: dict[str, np.ndarray] = {}
    for number in (1, 2):
        told = _round(number=number, epochs=2, optimizer_state=state)
        task.train(short, _data(), told)
        state = told.optimizer_state
    assert _flat(short) == pytest.approx(_flat(long), abs=1e-6)
    forgetful = _net()
    for number in (1, 2):
        task.train(forgetful, _data(), _round(number=number, epochs=2))
    assert _flat(forgetful) != pytest.approx(_flat(long), abs=1e-6)


def test_the_state_of_a_step_that_torch_holds_as_a_number_comes_back_as_one() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                assert isinstance(state["count"], int)
            return super().step(closure)

    task = SupervisedTask(optimizer=lambda parameters, rate: Counting(parameters, lr=rate), batch_size=40)
    told = _round(epochs=2)
    task.train(_net(), _data(), told)
    again = _round(epochs=2, optimizer_state=told.optimizer_state)
    task.train(_net(), _data(), again)
    assert again.optimizer_state["0.weight/count"].item() == 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_models_of_other_precisions_train_and_send_changes_of_their_own_type(tmp_path: Path, dtype: str) -> None:
    experiment = Experiment(
        name="half",
        model=lambda: _net(dtype=getattr(torch, dtype)),
        task=SupervisedTask(batch_size=8, metrics=("accuracy",)),
        shard="s",
        plan=Plan(local_epochs=20, learning_rate=0.1),
    )
    spec, arrays = experiment.build()
    schema = spec.schema_
    assert {row.dtype for row in spec.tensors} == {DType(dtype)}
    work = LocalWork(
        experiment=experiment, spec=spec, site=SiteName("north"), data=_data(), workspace=tmp_path, base=None
    )
    (tmp_path / "model").write_bytes(pack(schema.federated, arrays))
    work.train(number=1, model=tmp_path / "model", delta=tmp_path / "delta", buffers=None)
    delta = unpack(schema.parameters, (tmp_path / "delta").read_bytes())
    trained = {name: (arrays[name] + delta[name]).astype(arrays[name].dtype) for name in arrays}
    (tmp_path / "model").write_bytes(pack(schema.federated, trained))
    assert work.evaluate(number=1, model=tmp_path / "model").metrics["accuracy"] > 0.9


def test_an_experiment_that_diverges_says_so(tmp_path: Path) -> None:
    from federation.training.loop import NonFiniteMetricError

    experiment = Experiment(
        name="wild",
        model=lambda: nn.Linear(4, 1),
        task=SupervisedTask("mse"),
        shard="s",
        plan=Plan(learning_rate=1e20, local_epochs=5),
    )
    spec, arrays = experiment.build()
    data = _data(y=Y.astype(np.float32))
    work = LocalWork(experiment=experiment, spec=spec, site=SiteName("a"), data=data, workspace=tmp_path, base=None)
    (tmp_path / "model").write_bytes(pack(spec.schema_.federated, arrays))
    with pytest.raises(NonFiniteMetricError):
        work.train(number=1, model=tmp_path / "model", delta=tmp_path / "delta", buffers=None)


class _Own(SupervisedTask):
    pass


class _Rows:
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        return X[index], Y[index]


def correct(output: torch.Tensor, target: torch.Tensor) -> float:
    return float((output.argmax(1) == target).float().mean())


def test_a_task_of_nothing_but_known_parts_is_known_to_draw_nothing_once_it_has_trained() -> None:
    model, task = _net(), SupervisedTask(metrics=("accuracy",))
    assert not task.is_ours(model, _data())
    task.train(model, _data(), _round())
    assert task.is_ours(model, _data())

    model[0].register_forward_hook(lambda *_: None)
    assert not task.is_ours(model, _data())


@pytest.mark.parametrize(
    ("task", "last", "is_rows"),
    [
        (SupervisedTask(), nn.Dropout(0.5), False),
        (SupervisedTask(), nn.ReLU(), True),
        (SupervisedTask(nn.functional.cross_entropy), nn.ReLU(), False),
        (SupervisedTask(optimizer=lambda parameters, rate: torch.optim.SGD(parameters, rate)), nn.ReLU(), False),
        (SupervisedTask(metrics=(correct,)), nn.ReLU(), False),
        (_Own(), nn.ReLU(), False),
    ],
)
def test_a_task_with_any_part_of_the_authors_own_may_draw(task: SupervisedTask, last: nn.Module, is_rows: bool) -> None:
    model = nn.Sequential(*_net(), last)
    data = _data()
    if is_rows:
        data = LocalData(SimpleNamespace(train=_Rows(), validation=_Rows(), sample_shape=(4,), target_shape=()))
    task.train(model, data, _round())
    assert not task.is_ours(model, data)


def test_a_task_whose_training_was_replaced_may_draw() -> None:
    model, task = _net(), SupervisedTask()
    task.train(model, _data(), _round())
    task.train = lambda *_: {"loss": 0.0}  # type: ignore[method-assign]
    assert not task.is_ours(model, _data())


@pytest.mark.parametrize(("metric", "is_seeded"), [("accuracy", False), (correct, True)])
def test_a_round_seeds_the_global_generators_unless_nothing_draws_from_them(metric: object, is_seeded: bool) -> None:
    task = SupervisedTask(metrics=(metric,))  # type: ignore[arg-type]
    experiment = Experiment(name="e", model=_net, task=task, shard="s", plan=Plan(seed=5))
    spec, arrays = experiment.build()
    arena = Arena(Layout(spec, 1))
    arena.broadcast(0, PayloadName("model"))[:] = pack(spec.schema_.federated, arrays)
    exchange = MemoryExchange(arena, 0, 0)
    resident = Resident(experiment=experiment, spec=spec, base=None)
    work = SiteWork(resident, site=SiteName("north"), data=_data(), state=StateStore(None))
    for number in (1, 2):
        random.seed(17)
        work.train(number, 1, exchange, exchange)
    found = random.getstate()
    random.seed(derive_seed(5, 2, "north", "globals") if is_seeded else 17)
    assert random.getstate() == found
