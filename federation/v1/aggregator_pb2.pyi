from federation.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_TRAIN: _ClassVar[TaskKind]
    TASK_KIND_EVALUATE: _ClassVar[TaskKind]
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_TRAIN: TaskKind
TASK_KIND_EVALUATE: TaskKind

class ParticipateRequest(_message.Message):
    __slots__ = ("hello", "ready", "evaluated", "failed", "sealed", "update")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    hello: SiteHello
    ready: SiteReady
    evaluated: EvaluationResult
    failed: TaskFailure
    sealed: SealedMessage
    update: WholeUpdate
    def __init__(self, hello: _Optional[_Union[SiteHello, _Mapping]] = ..., ready: _Optional[_Union[SiteReady, _Mapping]] = ..., evaluated: _Optional[_Union[EvaluationResult, _Mapping]] = ..., failed: _Optional[_Union[TaskFailure, _Mapping]] = ..., sealed: _Optional[_Union[SealedMessage, _Mapping]] = ..., update: _Optional[_Union[WholeUpdate, _Mapping]] = ...) -> None: ...

class SiteHello(_message.Message):
    __slots__ = ("protocol", "experiment", "last_epoch", "last_round", "plan_digest", "pending")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    protocol: _tensors_pb2.ProtocolRange
    experiment: str
    last_epoch: int
    last_round: int
    plan_digest: bytes
    pending: PendingUpdate
    def __init__(self, protocol: _Optional[_Union[_tensors_pb2.ProtocolRange, _Mapping]] = ..., experiment: _Optional[str] = ..., last_epoch: _Optional[int] = ..., last_round: _Optional[int] = ..., plan_digest: _Optional[bytes] = ..., pending: _Optional[_Union[PendingUpdate, _Mapping]] = ...) -> None: ...

class PendingUpdate(_message.Message):
    __slots__ = ("round", "attempt", "update_id")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    update_id: bytes
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., update_id: _Optional[bytes] = ...) -> None: ...

class SiteReady(_message.Message):
    __slots__ = ("train_examples", "validation_examples", "work_round", "work_attempt")
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    WORK_ROUND_FIELD_NUMBER: _ClassVar[int]
    WORK_ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    train_examples: int
    validation_examples: int
    work_round: int
    work_attempt: int
    def __init__(self, train_examples: _Optional[int] = ..., validation_examples: _Optional[int] = ..., work_round: _Optional[int] = ..., work_attempt: _Optional[int] = ...) -> None: ...

class EvaluationResult(_message.Message):
    __slots__ = ("round", "epoch", "metrics", "examples", "seconds", "model_digest")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    epoch: int
    metrics: _containers.ScalarMap[str, float]
    examples: int
    seconds: float
    model_digest: bytes
    def __init__(self, round: _Optional[int] = ..., epoch: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., examples: _Optional[int] = ..., seconds: _Optional[float] = ..., model_digest: _Optional[bytes] = ...) -> None: ...

class TaskFailure(_message.Message):
    __slots__ = ("round", "epoch", "kind", "error_class", "detail", "permanent")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PERMANENT_FIELD_NUMBER: _ClassVar[int]
    round: int
    epoch: int
    kind: TaskKind
    error_class: str
    detail: str
    permanent: bool
    def __init__(self, round: _Optional[int] = ..., epoch: _Optional[int] = ..., kind: _Optional[_Union[TaskKind, str]] = ..., error_class: _Optional[str] = ..., detail: _Optional[str] = ..., permanent: _Optional[bool] = ...) -> None: ...

class SealedMessage(_message.Message):
    __slots__ = ("peer", "purpose", "round", "body", "sequence", "epoch")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    peer: str
    purpose: str
    round: int
    body: bytes
    sequence: int
    epoch: int
    def __init__(self, peer: _Optional[str] = ..., purpose: _Optional[str] = ..., round: _Optional[int] = ..., body: _Optional[bytes] = ..., sequence: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class ParticipateReply(_message.Message):
    __slots__ = ("welcome", "task", "verdict", "sealed", "finish", "refused")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    welcome: SessionWelcome
    task: Task
    verdict: Verdict
    sealed: SealedMessage
    finish: Finish
    refused: UpdateResult
    def __init__(self, welcome: _Optional[_Union[SessionWelcome, _Mapping]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., sealed: _Optional[_Union[SealedMessage, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., refused: _Optional[_Union[UpdateResult, _Mapping]] = ...) -> None: ...

class SessionWelcome(_message.Message):
    __slots__ = ("protocol", "epoch", "round", "plan_digest", "base", "takes_updates", "bulk_port")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TAKES_UPDATES_FIELD_NUMBER: _ClassVar[int]
    BULK_PORT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    epoch: int
    round: int
    plan_digest: bytes
    base: _tensors_pb2.PayloadDescriptor
    takes_updates: bool
    bulk_port: int
    def __init__(self, protocol: _Optional[int] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., plan_digest: _Optional[bytes] = ..., base: _Optional[_Union[_tensors_pb2.PayloadDescriptor, _Mapping]] = ..., takes_updates: _Optional[bool] = ..., bulk_port: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("kind", "round", "epoch", "payloads", "inline", "deadline_s", "attempt", "verdict")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    kind: TaskKind
    round: int
    epoch: int
    payloads: _containers.RepeatedCompositeFieldContainer[_tensors_pb2.PayloadDescriptor]
    inline: _containers.RepeatedCompositeFieldContainer[InlinePayload]
    deadline_s: float
    attempt: int
    verdict: Verdict
    def __init__(self, kind: _Optional[_Union[TaskKind, str]] = ..., round: _Optional[int] = ..., epoch: _Optional[int] = ..., payloads: _Optional[_Iterable[_Union[_tensors_pb2.PayloadDescriptor, _Mapping]]] = ..., inline: _Optional[_Iterable[_Union[InlinePayload, _Mapping]]] = ..., deadline_s: _Optional[float] = ..., attempt: _Optional[int] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ...) -> None: ...

class InlinePayload(_message.Message):
    __slots__ = ("digest", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    data: bytes
    def __init__(self, digest: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("round", "epoch", "counted", "reason", "attempt", "update_id")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    round: int
    epoch: int
    counted: bool
    reason: str
    attempt: int
    update_id: bytes
    def __init__(self, round: _Optional[int] = ..., epoch: _Optional[int] = ..., counted: _Optional[bool] = ..., reason: _Optional[str] = ..., attempt: _Optional[int] = ..., update_id: _Optional[bytes] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("outcome", "reason", "epoch")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    reason: str
    epoch: int
    def __init__(self, outcome: _Optional[str] = ..., reason: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class PullModelRequest(_message.Message):
    __slots__ = ("experiment", "digest", "offset", "takes_ticket")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TAKES_TICKET_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    digest: bytes
    offset: int
    takes_ticket: bool
    def __init__(self, experiment: _Optional[str] = ..., digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., takes_ticket: _Optional[bool] = ...) -> None: ...

class PullModelReply(_message.Message):
    __slots__ = ("chunk", "ticket")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    chunk: _tensors_pb2.Chunk
    ticket: bytes
    def __init__(self, chunk: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class PushUpdateRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit", "takes_ticket")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    TAKES_TICKET_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: UpdateChunk
    commit: UpdateCommit
    takes_ticket: bool
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[_Union[UpdateChunk, _Mapping]] = ..., commit: _Optional[_Union[UpdateCommit, _Mapping]] = ..., takes_ticket: _Optional[bool] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("experiment", "attempt", "epoch", "round", "payloads", "examples", "metrics", "train_seconds", "model_digest", "steps", "update_id", "oracle_calls", "peak_memory")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    ORACLE_CALLS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    attempt: int
    epoch: int
    round: int
    payloads: _containers.RepeatedCompositeFieldContainer[_tensors_pb2.PayloadDescriptor]
    examples: int
    metrics: _containers.ScalarMap[str, float]
    train_seconds: float
    model_digest: bytes
    steps: int
    update_id: bytes
    oracle_calls: int
    peak_memory: int
    def __init__(self, experiment: _Optional[str] = ..., attempt: _Optional[int] = ..., epoch: _Optional[int] = ..., round: _Optional[int] = ..., payloads: _Optional[_Iterable[_Union[_tensors_pb2.PayloadDescriptor, _Mapping]]] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., train_seconds: _Optional[float] = ..., model_digest: _Optional[bytes] = ..., steps: _Optional[int] = ..., update_id: _Optional[bytes] = ..., oracle_calls: _Optional[int] = ..., peak_memory: _Optional[int] = ...) -> None: ...

class WholeUpdate(_message.Message):
    __slots__ = ("header", "payloads", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    commit: UpdateCommit
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., payloads: _Optional[_Iterable[bytes]] = ..., commit: _Optional[_Union[UpdateCommit, _Mapping]] = ...) -> None: ...

class UpdateChunk(_message.Message):
    __slots__ = ("payload", "chunk")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    payload: int
    chunk: _tensors_pb2.Chunk
    def __init__(self, payload: _Optional[int] = ..., chunk: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ...) -> None: ...

class UpdateCommit(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PushUpdateReply(_message.Message):
    __slots__ = ("holding", "result")
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    holding: UpdateHolding
    result: UpdateResult
    def __init__(self, holding: _Optional[_Union[UpdateHolding, _Mapping]] = ..., result: _Optional[_Union[UpdateResult, _Mapping]] = ...) -> None: ...

class UpdateHolding(_message.Message):
    __slots__ = ("bytes", "admitted", "admitted_update_id", "piece_bytes", "ticket")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    bytes: _containers.RepeatedScalarFieldContainer[int]
    admitted: bool
    admitted_update_id: bytes
    piece_bytes: int
    ticket: bytes
    def __init__(self, bytes: _Optional[_Iterable[int]] = ..., admitted: _Optional[bool] = ..., admitted_update_id: _Optional[bytes] = ..., piece_bytes: _Optional[int] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class UpdateResult(_message.Message):
    __slots__ = ("admitted", "reason", "detail", "update_id", "digests")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ID_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    admitted: bool
    reason: str
    detail: str
    update_id: bytes
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, admitted: _Optional[bool] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., update_id: _Optional[bytes] = ..., digests: _Optional[_Iterable[bytes]] = ...) -> None: ...
