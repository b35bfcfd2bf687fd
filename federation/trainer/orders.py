"""What each order does. State is what `prepare` loaded; it stays warm until the process ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.data.loading import ShardError, check_shapes, load_shard
from federation.data.local import LocalData
from federation.data.shard import JoinedShard, count_examples
from federation.errors import MalformedMessageError
from federation.names import PayloadName, SiteName
from federation.plan import ExperimentSpec
from federation.training.importing import load_experiment
from federation.training.loop import LocalWork
from federation.v1 import trainer_pb2 as pb
from federation.wire.schemas import schema_from_proto

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.data.shard import Shard
    from federation.tensors import TensorSchema
    from federation.v1 import tensors_pb2

MAX_TEXT_BYTES = 4096
"""Cap on a description and on an error's text; people read them."""


class Orders:
    """The orders of one trainer, carried out one at a time."""

    def __init__(self) -> None:
        self._work: LocalWork | None = None

    def describe(self, order: pb.DescribeShards) -> pb.ShardDescriptions:
        """Load each shard and say what it gives; one that fails does not hide the others."""
        return pb.ShardDescriptions(shards=[_describe(config) for config in order.shards])

    def prepare(self, order: pb.PrepareTrainer) -> pb.TrainerPrepared:
        """Load experiment, shards and model.

        Raises:
            PlanError: the experiment is not the signed one, or does not import.
            ShardError: a shard cannot be loaded or has the wrong shape.
            MalformedMessageError: the order makes no sense.
        """
        started = time.perf_counter()
        if not order.spec_json or not order.shards:
            raise MalformedMessageError("an order to prepare names a spec and at least one shard")
        spec = ExperimentSpec.parse(order.spec_json)
        _check_schema(order.schema, spec.schema_)
        experiment = load_experiment(order.bundle_folder)
        data = LocalData(_load(order.shards, spec))
        self._work = LocalWork(
            experiment=experiment,
            spec=spec,
            site=SiteName(order.site),
            data=data,
            workspace=Path(order.workspace),
            base=Path(order.base_file) if order.base_file else None,
        )
        return pb.TrainerPrepared(
            train_examples=data.train_examples,
            validation_examples=data.validation_examples,
            seconds=time.perf_counter() - started,
        )

    def train(self, order: pb.RunTraining) -> pb.TrainingDone:
        """Train one round; when this returns the files are written.

        Raises:
            Exception: as `LocalWork.train`.
        """
        work = self._ready()
        done = work.train(
            number=order.round,
            attempt=order.attempt,
            model=Path(order.model_file),
            delta=Path(order.delta_file),
            buffers=_path(order.buffers_file),
            optimizer_in=_path(order.optimizer_in),
            optimizer_out=_path(order.optimizer_out),
            inputs={PayloadName(name): Path(path) for name, path in order.inputs.items()},
            outputs={PayloadName(name): Path(path) for name, path in order.outputs.items()},
        )
        return pb.TrainingDone(
            examples=done.examples,
            steps=done.steps,
            metrics=done.metrics,
            seconds=done.seconds,
            keeps_nothing=not work.has_pending,
            payload_bytes={str(name): nbytes for name, nbytes in done.payload_bytes.items()},
            oracle_calls=done.oracle_calls,
            peak_memory=done.peak_memory,
        )

    def evaluate(self, order: pb.RunEvaluation) -> pb.EvaluationDone:
        """Evaluate one model.

        Raises:
            Exception: as `LocalWork.evaluate`.
        """
        done = self._ready().evaluate(number=order.round, model=Path(order.model_file))
        return pb.EvaluationDone(examples=done.examples, metrics=done.metrics, seconds=done.seconds)

    def keep(self, order: pb.KeepState) -> None:
        """Promote or drop local state.

        Raises:
            StorageError: it cannot be moved.
        """
        self._ready().keep(order.round, order.attempt, counted=order.counted)

    def _ready(self) -> LocalWork:
        if self._work is None:
            raise MalformedMessageError("the trainer is not prepared; send an order to prepare first")
        return self._work


def _describe(config: pb.ShardConfig) -> pb.ShardDescription:
    try:
        shard = load_shard(config.name, config.factory, _options(config))
    except ShardError as error:
        return pb.ShardDescription(name=config.name, error_class=error.error_class, error_text=_cut(str(error)))
    return pb.ShardDescription(
        name=config.name,
        train_examples=count_examples(shard.train),
        validation_examples=count_examples(shard.validation),
        sample_shape=shard.sample_shape,
        target_shape=shard.target_shape,
        description=_cut(shard.description),
    )


def _load(configs: Sequence[pb.ShardConfig], spec: ExperimentSpec) -> Shard:
    shards = []
    for config in sorted(configs, key=lambda config: config.name):
        shard = load_shard(config.name, config.factory, _options(config))
        check_shapes(config.name, shard, spec.sample_shape, spec.target_shape)
        shards.append(shard)
    try:
        return shards[0] if len(shards) == 1 else JoinedShard(shards)
    except ValueError as error:
        raise ShardError(str(error), error_class="WrongShapeError") from error


def _options(config: pb.ShardConfig) -> dict[str, Any]:
    try:
        options = json.loads(config.options_json or "{}")
    except ValueError as error:
        raise ShardError(f"shard {config.name!r}: options are not JSON: {error}") from error
    if not isinstance(options, dict):
        raise ShardError(f"shard {config.name!r}: options are a {type(options).__name__}, expected a table")
    return options


def _check_schema(message: tensors_pb2.TensorSchema, schema: TensorSchema) -> None:
    """The order repeats the schema of the spec; a difference means that the two do not belong together."""
    if message.tensors and schema_from_proto(message) != schema:
        raise MalformedMessageError("the order's schema is not that of its spec")


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _cut(text: str) -> str:
    return text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
