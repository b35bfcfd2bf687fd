"""`federation quickstart`: three hospitals train one model, for real, on this machine.

What runs is the whole federation of `federation.client.local`: a director, three envoys, an aggregator, and at each
hospital a collaborator and a confined trainer, over mutual TLS. Then, because here and only here one process may see
all data, it is compared with what each hospital reaches alone and with the pooled data nobody may pool: same model,
same number of passes, tested on the same patients who belong to no hospital.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from federation.client.local import LocalFederation, LocalSite
from federation.client.progress import follow
from federation.client.report import write_report
from federation.client.saving import writing
from federation.errors import ConfigurationError, PlanError
from federation.names import SiteName
from federation.storage.safetensors_files import read_model
from federation.tensors import pack

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.client.views import ExperimentDetails
    from federation.data.shard import Shard
    from federation.plan import ExperimentSpec
    from federation.tensors.buffers import Array
    from federation.training.experiment import Experiment

EXPERIMENT = Path(__file__).parent / "hospitals"
"""The experiment that is submitted: a folder like any user's."""
_SHARD: dict[str, Any] = {
    "name": "patients",
    "kind": "breast-cancer",
    "factory": "federation.data.samples:BreastCancerShard",
}
_MARK = ".quickstart"
"""File in a folder that a quickstart made."""
_MADE = ("ca", "director", "logs", "sites", "user", "model.safetensors", "report.html", "plot.png")
"""What a run leaves beside it: that of `federation.client.local`, then that of `run_quickstart`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Accuracies on the patients that belong to no hospital, 0 to 1."""

    alone: dict[str, float]
    federated: float
    pooled: float


def run_quickstart(folder: Path, *, rounds: int | None, as_json: bool) -> None:
    """Run the quickstart into `folder`, replacing what an earlier one left there.

    Args:
        folder: receives model, report, plot, logs and the state of all daemons.
        rounds: rounds to train instead of the experiment's own number.
        as_json: print one JSON document instead of tables.

    Raises:
        ConfigurationError: scikit-learn, torch or matplotlib is missing, or a daemon did not start.
        StorageError: `folder` cannot be written.
        PlanError: the experiment did not complete; says why.
    """
    _require("torch", "sklearn", "matplotlib")
    from federation.data.samples import HOSPITALS, BreastCancerShard

    started = time.perf_counter()
    console = Console(stderr=as_json)
    clear_folder(folder)
    shards = {name: BreastCancerShard(name) for name in HOSPITALS}
    model, report, plot = folder / "model.safetensors", folder / "report.html", folder / "plot.png"
    with tempfile.TemporaryDirectory() as scratch:
        source = _source(Path(scratch), rounds)
        details = _train_together(folder, source, model, console)
        console.print("[bold]Comparing[/bold] with each hospital alone and with the pooled data nobody may pool")
        comparison = _compare(source, shards, model)
    write_report(details, report)
    _plot(details, comparison, shards, plot)
    result = {
        "experiment": details.summary.experiment,
        "sites": [
            {"name": name, "examples": len(shard.train[1]), "alone_accuracy": comparison.alone[name]}
            for name, shard in shards.items()
        ],
        "federated_accuracy": comparison.federated,
        "pooled_accuracy": comparison.pooled,
        "rounds": len(details.rounds),
        "seconds": round(time.perf_counter() - started, 2),
        "model": str(model),
        "report": str(report),
        "plot": str(plot),
    }
    if as_json:
        print(json.dumps(result))
    else:
        _print_result(result, console)


def _train_together(folder: Path, source: Path, model: Path, console: Console) -> ExperimentDetails:
    """Run the federation once and download its last model, trained for as long as those it is compared with."""
    from federation.data.samples import HOSPITALS

    console.print("[bold]Starting[/bold] a director and three hospitals' envoys, each with its own certificate")
    sites = [LocalSite(name=name, shards=[_SHARD | {"options": {"hospital": name}}]) for name in HOSPITALS]
    with LocalFederation(folder, sites=sites, name="hospitals") as local, local.connect() as client:
        experiment = client.submit(source)
        console.print(f"[bold]Submitted[/bold] {experiment}")
        planned = client.show(experiment).summary.rounds_planned
        follow(client.watch(experiment), rounds=planned, console=console)
        details = client.show(experiment)
        if details.summary.state != "completed":
            ended = f"{experiment} ended {details.summary.state}: {details.summary.reason}"
            raise PlanError(f"{ended}; logs are in {folder / 'logs'}")
        client.download(experiment, "last.safetensors", model)
    return details


def _require(*modules: str) -> None:
    import importlib.util

    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigurationError(f"the quickstart needs {', '.join(missing)}: pip install 'federation[quickstart]'")


def clear_folder(folder: Path) -> None:
    """Make room for a run: remove an earlier one, and nothing that no quickstart made.

    A run marks its folder first of all. By what else is in it a folder is not known: one with an authority may be
    where a real federation keeps its own.

    Raises:
        ConfigurationError: `folder` holds something and was not marked by a quickstart; nothing is removed.
        StorageError: it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / _MARK).exists():
            raise ConfigurationError(f"{folder} holds something that is no earlier quickstart; name another --output")
        (folder / _MARK).write_text("A quickstart made this folder; another run replaces what it left here.\n")
        for name in _MADE:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


def _source(scratch: Path, rounds: int | None) -> Path:
    """Return the experiment folder, with another number of rounds if asked for."""
    if rounds is None:
        return EXPERIMENT
    copy = scratch / "hospitals"
    shutil.copytree(EXPERIMENT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "rounds.txt").write_text(str(rounds))
    return copy


def _compare(source: Path, shards: dict[str, Any], model: Path) -> Comparison:
    from federation.data.shard import JoinedShard
    from federation.training.importing import load_experiment

    experiment = load_experiment(source)
    spec, initial = experiment.build()

    def accuracy_alone(shard: Shard) -> float:
        return _test(experiment, spec, _train_alone(experiment, spec, initial, shard))

    _, federated = read_model(model)
    return Comparison(
        alone={name: accuracy_alone(shard) for name, shard in shards.items()},
        federated=_test(experiment, spec, federated),
        pooled=accuracy_alone(JoinedShard(list(shards.values()))),
    )


def _train_alone(
    experiment: Experiment, spec: ExperimentSpec, initial: dict[str, Array], shard: Shard
) -> dict[str, Array]:
    """Train as a federation of one would, for as many rounds, and return the model."""
    import numpy as np

    from federation.data.local import LocalData
    from federation.tensors import unpack
    from federation.training.loop import LocalWork

    schema = spec.schema_
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, delta = folder / "model.bin", folder / "delta.bin"
        work = LocalWork(
            experiment=experiment, spec=spec, site=SiteName("alone"), data=LocalData(shard), workspace=folder, base=None
        )
        arrays = {name: array.copy() for name, array in initial.items()}
        for number in range(1, spec.plan.rounds + 1):
            model.write_bytes(pack(schema.federated, arrays))
            delta.touch()
            work.train(number=number, model=model, delta=delta, buffers=None)
            for name, change in unpack(schema.parameters, delta.read_bytes()).items():
                np.add(arrays[name], change, out=arrays[name])
    return arrays


def _test(experiment: Experiment, spec: ExperimentSpec, arrays: dict[str, Array]) -> float:
    """Return the accuracy on the patients of no hospital."""
    from federation.data.local import LocalData
    from federation.data.samples import breast_cancer_test
    from federation.data.shard import ArrayShard

    adapter = experiment.make_model(spec.plan.seed)
    for name, target in adapter.arrays().items():
        target[...] = arrays[name]
    patients = breast_cancer_test()
    metrics = experiment.task.evaluate(adapter.model, LocalData(ArrayShard(train=patients, validation=patients)))
    return float(metrics["accuracy"])


def _print_result(result: dict[str, Any], console: Console) -> None:
    table = Table("trained on", "patients", "accuracy on patients of no hospital", title="Why it was worth it")
    for site in result["sites"]:
        table.add_row(f"{site['name']} alone", str(site["examples"]), f"{site['alone_accuracy']:.3f}")
    total = sum(site["examples"] for site in result["sites"])
    federated = f"[bold]{result['federated_accuracy']:.3f}[/bold]"
    table.add_row("[bold]the federation[/bold]", f"{total}, each at home", federated)
    table.add_row("pooled (nobody may)", str(total), f"{result['pooled_accuracy']:.3f}")
    console.print(table)
    console.print(f"{result['rounds']} rounds, {result['seconds']} s in all")
    for what in ("model", "report", "plot"):
        console.print(f"{what:7}{result[what]}", soft_wrap=True, highlight=False)


def _plot(details: ExperimentDetails, comparison: Comparison, shards: Iterable[str], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curve, bars) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    rounds = [report.round for report in details.rounds]
    curve.plot(rounds, [report.metrics.get("accuracy") for report in details.rounds], "k-", lw=2, label="federation")
    for name in shards:
        own = [
            next((entry.metrics.get("accuracy") for entry in report.contributions if entry.site == name), None)
            for report in details.rounds
        ]
        curve.plot(rounds, own, "--", lw=1, label=f"at {name}")
    curve.xaxis.get_major_locator().set_params(integer=True)
    curve.set(xlabel="round", ylabel="accuracy on validation patients", title="The federated model, round by round")
    curve.legend()
    names = [*(f"{name}\nalone" for name in shards), "federation", "pooled\n(nobody may)"]
    values = [*(comparison.alone[name] for name in shards), comparison.federated, comparison.pooled]
    colours = ["#999999"] * len(comparison.alone) + ["#0072B2", "#E69F00"]
    drawn = bars.bar(names, values, color=colours)
    bars.bar_label(drawn, fmt="%.3f")
    bars.set(ylim=(0, 1.08), ylabel="accuracy", title="On patients of no hospital")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
