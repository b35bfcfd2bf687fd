"""A plan that leaves nothing to time gives bit for bit the same model in simulation and over the wire, and one history.

The same three sites with the same parts of the digits: once as processes behind real mutual TLS, once simulated with
one worker and with two. What differs by nature is not compared: times, the journal's sequence, memory, and the digests
by which uploads are told apart.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest

from federation.client.local import LocalFederation, LocalSite
from federation.simulation import simulate
from federation.storage.safetensors_files import read_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from federation.simulation import RunResult

pytestmark = [pytest.mark.needs_torch, pytest.mark.timeout(600)]

SITES = ("east", "north", "west")
WHOLE = "federation.data.samples:WholeDigits"
PARTITION = "dirichlet:1.0"
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"algorithm": "fedavg"},
    "scaffold": {"algorithm": "scaffold"},
    "diana": {"algorithm": "diana", "compression": "rand_k:0.1"},
    # A bfloat16 layer and a float32 one: vectors and state are float32, in another order than the model. Steps of a
    # biased codec travel inside tasks.
    "half": {"algorithm": "scaffold", "compression": "top_k:0.2", "downlink": "stc:0.2"},
    # Steps of an unbiased codec are pulled, and sites that miss rounds get the model whole.
    "downlink-wide": {"downlink": "qsgd:16", "sample": 2, "rounds": 5, "evaluate_every": 3},
    # Asynchronous, but all sites are in every step, so that the order of their arrival makes no difference.
    "fedbuff": {"algorithm": "fedbuff", "options": {"k": 3}},
    "clipping": {"rule": "centered_clipping", "byzantine": 1, "pre_aggregation": ("arc", "nnm")},
}
WIDTHS = {"downlink-wide": 1000}
"""Of the hidden layer: 300 KB are more than travel inside a task."""
EXPERIMENT = """
import torch
from federation import Experiment, Plan, SupervisedTask

class Cast(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)

def make_model():
    return torch.nn.Sequential(
        torch.nn.Flatten(), Cast({dtype}), torch.nn.Linear(64, {width}, dtype={dtype}), {norm}torch.nn.ReLU(),
        torch.nn.Dropout(0.1), Cast(torch.float32), torch.nn.Linear({width}, 10)
    )

experiment = Experiment(
    name="{name}",
    model=make_model,
    task=SupervisedTask(metrics=("accuracy",)),
    shard="digits",
    data="{whole}",
    plan=Plan(sites=3, minimum_sites=3, local_epochs=2, learning_rate=0.1, seed=11, {options}),
)
"""


def write(folder: Path, name: str) -> Path:
    """Write the experiment of one method."""
    folder.mkdir()
    options = ", ".join(f"{key}={value!r}" for key, value in {"rounds": 3, **METHODS[name]}.items())
    width = WIDTHS.get(name, 32)
    norm = f"torch.nn.BatchNorm1d({width}), " if name in WIDTHS else ""
    dtype = "torch.bfloat16" if name == "half" else "torch.float32"
    text = EXPERIMENT.format(name=name, whole=WHOLE, options=options, width=width, norm=norm, dtype=dtype)
    (folder / "experiment.py").write_text(text)
    return folder


def site(part: int, name: str) -> LocalSite:
    options = {"base": WHOLE, "scheme": PARTITION, "part": part, "of": len(SITES), "seed": 11}
    shard = {"name": "digits", "kind": "digits", "factory": "federation.data.part:PartShard", "options": options}
    return LocalSite(
        name=name, shards=[shard], settings={"policy": {"release_logs": True, "max_experiments": len(METHODS)}}
    )


@pytest.fixture(scope="module", name="federated")
def _federated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, tuple[Any, dict[str, Any]]]]:
    """Run every method over the wire, a few at once, and return its rounds and its last model, by name."""
    folder = tmp_path_factory.mktemp("wire")
    found = {}
    members, director = [site(*row) for row in enumerate(SITES)], {"aggregators": {"max_running": 2}}
    with LocalFederation(folder / "federation", sites=members, director=director) as local:
        with local.connect() as client:
            submitted = {name: client.submit(write(folder / name, name)) for name in METHODS}
            for name, experiment in submitted.items():
                story = [f"{event.kind} {event.site}: {event.text}" for event in client.watch(experiment)]
                details = client.show(experiment)
                assert details.summary.state == "completed", f"{details.summary.reason}\n" + "\n".join(story)
                target = folder / f"{name}.safetensors"
                client.download(experiment, "last.safetensors", target)
                found[name] = (details.rounds, read_model(target)[1])
    yield found


@pytest.fixture(scope="module", name="simulated")
def _simulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], RunResult]:
    """Return what simulates a method with so many workers, once."""
    folder = tmp_path_factory.mktemp("simulated")

    @functools.cache
    def run(name: str, workers: int) -> RunResult:
        return simulate(write(folder / f"{name}-{workers}", name), sites=SITES, partition=PARTITION, workers=workers)

    return run


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_the_model_of_every_round_is_the_same_to_the_bit(
    federated: Mapping[str, tuple[Any, dict[str, Any]]], simulated: Callable[..., RunResult], name: str, workers: int
) -> None:
    rounds, model = federated[name]
    result = simulated(name, workers)
    assert result.outcome == "completed", result.reason
    assert [record.model_digest for record in result.records] == [entry.model_digest for entry in rounds]
    assert sorted(model) == sorted(result.arrays)
    for tensor, value in model.items():
        assert value.tobytes() == result.arrays[tensor].tobytes(), tensor


@pytest.mark.parametrize("name", METHODS)
def test_the_history_is_the_same_but_for_times(
    federated: Mapping[str, tuple[Any, dict[str, Any]]], simulated: Callable[..., RunResult], name: str
) -> None:
    rounds, _ = federated[name]
    result = simulated(name, 1)
    for record, entry in zip(result.records, rounds, strict=True):
        for field in ("round", "metrics", "train_metrics", "is_best", "bytes_up", "bytes_down"):
            assert getattr(record, field) == getattr(entry, field), (record.round, field)
        # Norms enter no arithmetic; their sums are cut as the bytes came, so they are equal to rounding only.
        assert record.update_norm == pytest.approx(entry.update_norm, rel=1e-12)
        for ours, theirs in zip(record.sites, entry.contributions, strict=True):
            assert ours.outcome.value == theirs.outcome
            assert ours.update_norm == pytest.approx(theirs.update_norm, rel=1e-6)
            for field in (
                "site", "reason", "examples", "weight", "bytes_up", "bytes_down", "train_metrics",
                "metrics", "staleness",
            ):  # fmt: skip
                assert getattr(ours, field) == getattr(theirs, field), (record.round, ours.site, field)
