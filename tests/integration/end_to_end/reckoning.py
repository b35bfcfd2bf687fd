"""What a federation must arrive at, reckoned in this process by other code."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.data.local import LocalData
from federation.names import SiteName
from federation.training.context import RoundContext
from federation.training.importing import load_experiment

from .sites import EXAMPLES, HERE, load_module

if TYPE_CHECKING:
    from pathlib import Path

    from federation.plan import Plan


class Reckoning:
    """Plain FedAvg over the same task and shards, in this process: what a federation of any kind must arrive at.

    Sums run in float64 over sites in name order; a half-precision model keeps a float32 master, as the server does;
    integers are combined by maximum.
    """

    def __init__(self, source: Path, sites: tuple[str, ...], *, shard: str = "Rows") -> None:
        settings = json.loads((source / "settings.json").read_text())
        copy = source.with_name(source.name + "-reckoned")
        shutil.copytree(source, copy, dirs_exist_ok=True)
        (copy / "settings.json").write_text(json.dumps({**settings, "gate": None, "holds": {}}))
        factory = getattr(load_module(HERE / "site" / "rows.py"), shard)
        self.data = {name: LocalData(factory(*EXAMPLES[name])) for name in sorted(sites)}
        self.experiment = load_experiment(copy)
        self.plan: Plan = self.experiment.plan
        self.spec, self.model = self.experiment.build()
        self._adapter = self.experiment.make_model(self.plan.seed)
        own = [spec.name for spec in self.spec.schema_.local]
        self.local = {name: {key: self.model[key].copy() for key in own} for name in sites}
        self.states: dict[str, dict[str, Any]] = {name: {} for name in sites}
        self._master = {
            name: value.astype(np.float32) if value.dtype.itemsize == 2 else value for name, value in self.model.items()
        }

    def run(self, rounds: int | None = None) -> dict[str, Any]:
        """Return the model after the rounds."""
        for number in range(1, (rounds or self.plan.rounds) + 1):
            self._round(number)
        return self.model

    def _round(self, number: int) -> None:
        sums: dict[str, Any] = {}
        moments: dict[str, Any] = {}
        total = 0
        for name, data in self.data.items():
            trained, context = self._train(number, name)
            weight = data.examples_used
            total += weight
            for spec in self.spec.schema_.federated:
                key, value = spec.name, trained[spec.name]
                if spec.dtype.is_float:
                    change = (value - self.model[key]).astype(np.float64)
                    sums[key] = sums.get(key, 0.0) + weight * change
                else:
                    sums[key] = value if key not in sums else np.maximum(sums[key], value)
            for key, value in context.optimizer_state.items():
                moments[key] = moments.get(key, 0.0) + weight * value.astype(np.float64)
        for key, value in sums.items():
            master = self._master[key]
            self._master[key] = (master + value / total).astype(master.dtype) if value.dtype == np.float64 else value
            self.model[key] = self._master[key].astype(self.model[key].dtype)
        if self.plan.optimizer_state == "aggregate":
            mean = {key: (value / total).astype(np.float32) for key, value in moments.items()}
            self.states = {name: mean for name in self.states}

    def _train(self, number: int, name: str) -> tuple[dict[str, Any], RoundContext]:
        data, arrays = self.data[name], self._adapter.arrays()
        data.start_count()
        for key, value in {**self.model, **self.local[name]}.items():
            arrays[key][...] = value
        context = RoundContext(
            number=number,
            site=SiteName(name),
            seed=self.plan.seed,
            epochs=self.plan.epochs,
            steps=self.plan.local_steps,
            learning_rate=self.plan.learning_rate,
            threads=1,
            optimizer_state={key: value.copy() for key, value in self.states[name].items()},
        )
        self.experiment.task.train(self._adapter.model, data, context)
        trained = {key: value.copy() for key, value in self._adapter.arrays().items()}
        self.local[name] = {key: trained[key] for key in self.local[name]}
        if self.plan.optimizer_state == "keep":
            self.states[name] = dict(context.optimizer_state)
        return trained, context
