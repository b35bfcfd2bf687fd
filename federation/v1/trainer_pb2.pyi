from federation.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainerOrder(_message.Message):
    __slots__ = ("order", "describe", "prepare", "train", "evaluate", "keep", "end")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    order: int
    describe: DescribeShards
    prepare: PrepareTrainer
    train: RunTraining
    evaluate: RunEvaluation
    keep: KeepState
    end: EndTrainer
    def __init__(self, order: _Optional[int] = ..., describe: _Optional[_Union[DescribeShards, _Mapping]] = ..., prepare: _Optional[_Union[PrepareTrainer, _Mapping]] = ..., train: _Optional[_Union[RunTraining, _Mapping]] = ..., evaluate: _Optional[_Union[RunEvaluation, _Mapping]] = ..., keep: _Optional[_Union[KeepState, _Mapping]] = ..., end: _Optional[_Union[EndTrainer, _Mapping]] = ...) -> None: ...

class ShardConfig(_message.Message):
    __slots__ = ("name", "kind", "factory", "options_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FACTORY_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    factory: str
    options_json: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., factory: _Optional[str] = ..., options_json: _Optional[str] = ...) -> None: ...

class DescribeShards(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardConfig]
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardConfig, _Mapping]]] = ...) -> None: ...

class PrepareTrainer(_message.Message):
    __slots__ = ("experiment", "site", "bundle_folder", "workspace", "shards", "schema", "base_file", "spec_json")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FOLDER_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    BASE_FILE_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    site: str
    bundle_folder: str
    workspace: str
    shards: _containers.RepeatedCompositeFieldContainer[ShardConfig]
    schema: _tensors_pb2.TensorSchema
    base_file: str
    spec_json: str
    def __init__(self, experiment: _Optional[str] = ..., site: _Optional[str] = ..., bundle_folder: _Optional[str] = ..., workspace: _Optional[str] = ..., shards: _Optional[_Iterable[_Union[ShardConfig, _Mapping]]] = ..., schema: _Optional[_Union[_tensors_pb2.TensorSchema, _Mapping]] = ..., base_file: _Optional[str] = ..., spec_json: _Optional[str] = ...) -> None: ...

class RunTraining(_message.Message):
    __slots__ = ("round", "model_file", "delta_file", "buffers_file", "attempt", "optimizer_in", "optimizer_out", "inputs", "outputs")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILE_FIELD_NUMBER: _ClassVar[int]
    DELTA_FILE_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FILE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_IN_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_OUT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    round: int
    model_file: str
    delta_file: str
    buffers_file: str
    attempt: int
    optimizer_in: str
    optimizer_out: str
    inputs: _containers.ScalarMap[str, str]
    outputs: _containers.ScalarMap[str, str]
    def __init__(self, round: _Optional[int] = ..., model_file: _Optional[str] = ..., delta_file: _Optional[str] = ..., buffers_file: _Optional[str] = ..., attempt: _Optional[int] = ..., optimizer_in: _Optional[str] = ..., optimizer_out: _Optional[str] = ..., inputs: _Optional[_Mapping[str, str]] = ..., outputs: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RunEvaluation(_message.Message):
    __slots__ = ("round", "model_file")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILE_FIELD_NUMBER: _ClassVar[int]
    round: int
    model_file: str
    def __init__(self, round: _Optional[int] = ..., model_file: _Optional[str] = ...) -> None: ...

class KeepState(_message.Message):
    __slots__ = ("round", "counted", "attempt")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    round: int
    counted: bool
    attempt: int
    def __init__(self, round: _Optional[int] = ..., counted: _Optional[bool] = ..., attempt: _Optional[int] = ...) -> None: ...

class EndTrainer(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainerAnswer(_message.Message):
    __slots__ = ("order", "described", "prepared", "trained", "evaluated", "failed", "done")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DESCRIBED_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    order: int
    described: ShardDescriptions
    prepared: TrainerPrepared
    trained: TrainingDone
    evaluated: EvaluationDone
    failed: OrderFailed
    done: OrderDone
    def __init__(self, order: _Optional[int] = ..., described: _Optional[_Union[ShardDescriptions, _Mapping]] = ..., prepared: _Optional[_Union[TrainerPrepared, _Mapping]] = ..., trained: _Optional[_Union[TrainingDone, _Mapping]] = ..., evaluated: _Optional[_Union[EvaluationDone, _Mapping]] = ..., failed: _Optional[_Union[OrderFailed, _Mapping]] = ..., done: _Optional[_Union[OrderDone, _Mapping]] = ...) -> None: ...

class ShardDescriptions(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardDescription]
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardDescription, _Mapping]]] = ...) -> None: ...

class ShardDescription(_message.Message):
    __slots__ = ("name", "train_examples", "validation_examples", "sample_shape", "target_shape", "description", "error_class", "error_text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    ERROR_TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    train_examples: int
    validation_examples: int
    sample_shape: _containers.RepeatedScalarFieldContainer[int]
    target_shape: _containers.RepeatedScalarFieldContainer[int]
    description: str
    error_class: str
    error_text: str
    def __init__(self, name: _Optional[str] = ..., train_examples: _Optional[int] = ..., validation_examples: _Optional[int] = ..., sample_shape: _Optional[_Iterable[int]] = ..., target_shape: _Optional[_Iterable[int]] = ..., description: _Optional[str] = ..., error_class: _Optional[str] = ..., error_text: _Optional[str] = ...) -> None: ...

class TrainerPrepared(_message.Message):
    __slots__ = ("train_examples", "validation_examples", "seconds")
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    train_examples: int
    validation_examples: int
    seconds: float
    def __init__(self, train_examples: _Optional[int] = ..., validation_examples: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class TrainingDone(_message.Message):
    __slots__ = ("examples", "steps", "metrics", "seconds", "keeps_nothing", "payload_bytes", "oracle_calls", "peak_memory")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PayloadBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    KEEPS_NOTHING_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    ORACLE_CALLS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_FIELD_NUMBER: _ClassVar[int]
    examples: int
    steps: int
    metrics: _containers.ScalarMap[str, float]
    seconds: float
    keeps_nothing: bool
    payload_bytes: _containers.ScalarMap[str, int]
    oracle_calls: int
    peak_memory: int
    def __init__(self, examples: _Optional[int] = ..., steps: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., seconds: _Optional[float] = ..., keeps_nothing: _Optional[bool] = ..., payload_bytes: _Optional[_Mapping[str, int]] = ..., oracle_calls: _Optional[int] = ..., peak_memory: _Optional[int] = ...) -> None: ...

class EvaluationDone(_message.Message):
    __slots__ = ("examples", "metrics", "seconds")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    examples: int
    metrics: _containers.ScalarMap[str, float]
    seconds: float
    def __init__(self, examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., seconds: _Optional[float] = ...) -> None: ...

class OrderFailed(_message.Message):
    __slots__ = ("error_class", "traceback", "permanent")
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    error_class: str
    traceback: str
    permanent: bool
    def __init__(self, error_class: _Optional[str] = ..., traceback: _Optional[str] = ..., permanent: _Optional[bool] = ...) -> None: ...

class OrderDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
