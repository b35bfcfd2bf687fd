from federation.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExperimentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPERIMENT_STATE_UNSPECIFIED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_SUBMITTED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_QUEUED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_RUNNING: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_PAUSED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_COMPLETED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_FAILED: _ClassVar[ExperimentState]
    EXPERIMENT_STATE_CANCELLED: _ClassVar[ExperimentState]
EXPERIMENT_STATE_UNSPECIFIED: ExperimentState
EXPERIMENT_STATE_SUBMITTED: ExperimentState
EXPERIMENT_STATE_QUEUED: ExperimentState
EXPERIMENT_STATE_RUNNING: ExperimentState
EXPERIMENT_STATE_PAUSED: ExperimentState
EXPERIMENT_STATE_COMPLETED: ExperimentState
EXPERIMENT_STATE_FAILED: ExperimentState
EXPERIMENT_STATE_CANCELLED: ExperimentState

class SubmitRequest(_message.Message):
    __slots__ = ("header", "bundle", "model")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    header: SubmitHeader
    bundle: _tensors_pb2.Chunk
    model: _tensors_pb2.Chunk
    def __init__(self, header: _Optional[_Union[SubmitHeader, _Mapping]] = ..., bundle: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ..., model: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ...) -> None: ...

class SubmitHeader(_message.Message):
    __slots__ = ("protocol", "manifest", "signature", "signing_key", "bundle_bytes", "model_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: _tensors_pb2.ProtocolRange
    manifest: bytes
    signature: bytes
    signing_key: bytes
    bundle_bytes: int
    model_bytes: int
    def __init__(self, protocol: _Optional[_Union[_tensors_pb2.ProtocolRange, _Mapping]] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signing_key: _Optional[bytes] = ..., bundle_bytes: _Optional[int] = ..., model_bytes: _Optional[int] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("experiment",)
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    def __init__(self, experiment: _Optional[str] = ...) -> None: ...

class ListExperimentsRequest(_message.Message):
    __slots__ = ("project", "states", "limit")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    project: str
    states: _containers.RepeatedScalarFieldContainer[ExperimentState]
    limit: int
    def __init__(self, project: _Optional[str] = ..., states: _Optional[_Iterable[_Union[ExperimentState, str]]] = ..., limit: _Optional[int] = ...) -> None: ...

class ListExperimentsReply(_message.Message):
    __slots__ = ("experiments",)
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[ExperimentSummary]
    def __init__(self, experiments: _Optional[_Iterable[_Union[ExperimentSummary, _Mapping]]] = ...) -> None: ...

class ExperimentSummary(_message.Message):
    __slots__ = ("experiment", "name", "project", "submitted_by", "state", "reason", "degraded", "rounds_done", "rounds_planned", "submitted_at", "changed_at", "sites")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_DONE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_AT_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    name: str
    project: str
    submitted_by: str
    state: ExperimentState
    reason: str
    degraded: bool
    rounds_done: int
    rounds_planned: int
    submitted_at: float
    changed_at: float
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, experiment: _Optional[str] = ..., name: _Optional[str] = ..., project: _Optional[str] = ..., submitted_by: _Optional[str] = ..., state: _Optional[_Union[ExperimentState, str]] = ..., reason: _Optional[str] = ..., degraded: _Optional[bool] = ..., rounds_done: _Optional[int] = ..., rounds_planned: _Optional[int] = ..., submitted_at: _Optional[float] = ..., changed_at: _Optional[float] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class GetExperimentRequest(_message.Message):
    __slots__ = ("experiment", "after_round")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    after_round: int
    def __init__(self, experiment: _Optional[str] = ..., after_round: _Optional[int] = ...) -> None: ...

class GetExperimentReply(_message.Message):
    __slots__ = ("summary", "plan_json", "sites", "rounds", "artifacts", "manifest_digest", "signing_fingerprint", "transitions", "aggregator")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNING_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    summary: ExperimentSummary
    plan_json: str
    sites: _containers.RepeatedCompositeFieldContainer[SiteParticipation]
    rounds: _containers.RepeatedCompositeFieldContainer[RoundReport]
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    manifest_digest: str
    signing_fingerprint: str
    transitions: _containers.RepeatedCompositeFieldContainer[Transition]
    aggregator: str
    def __init__(self, summary: _Optional[_Union[ExperimentSummary, _Mapping]] = ..., plan_json: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[SiteParticipation, _Mapping]]] = ..., rounds: _Optional[_Iterable[_Union[RoundReport, _Mapping]]] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., manifest_digest: _Optional[str] = ..., signing_fingerprint: _Optional[str] = ..., transitions: _Optional[_Iterable[_Union[Transition, _Mapping]]] = ..., aggregator: _Optional[str] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("state", "reason", "actor", "at")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    state: ExperimentState
    reason: str
    actor: str
    at: float
    def __init__(self, state: _Optional[_Union[ExperimentState, str]] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., at: _Optional[float] = ...) -> None: ...

class SiteParticipation(_message.Message):
    __slots__ = ("site", "answer", "reason", "shards", "examples", "quarantined_since", "quarantine_reason", "releases")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_SINCE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_REASON_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    site: str
    answer: str
    reason: str
    shards: _containers.RepeatedScalarFieldContainer[str]
    examples: int
    quarantined_since: int
    quarantine_reason: str
    releases: int
    def __init__(self, site: _Optional[str] = ..., answer: _Optional[str] = ..., reason: _Optional[str] = ..., shards: _Optional[_Iterable[str]] = ..., examples: _Optional[int] = ..., quarantined_since: _Optional[int] = ..., quarantine_reason: _Optional[str] = ..., releases: _Optional[int] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "bytes", "digest", "round")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    digest: str
    round: int
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., digest: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class RoundReport(_message.Message):
    __slots__ = ("round", "epoch", "sequence", "started_at", "seconds", "phase_seconds", "contributions", "train_metrics", "metrics", "model_digest", "is_best", "bytes_down", "bytes_up", "update_norm", "simulated_seconds", "algorithm_scalars", "total_sites", "rule_note", "quarantined", "unevaluated")
    class PhaseSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TrainMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class AlgorithmScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class UnevaluatedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_METRICS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_BEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_SCALARS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SITES_FIELD_NUMBER: _ClassVar[int]
    RULE_NOTE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    UNEVALUATED_FIELD_NUMBER: _ClassVar[int]
    round: int
    epoch: int
    sequence: int
    started_at: float
    seconds: float
    phase_seconds: _containers.ScalarMap[str, float]
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    train_metrics: _containers.ScalarMap[str, float]
    metrics: _containers.ScalarMap[str, float]
    model_digest: str
    is_best: bool
    bytes_down: int
    bytes_up: int
    update_norm: float
    simulated_seconds: float
    algorithm_scalars: _containers.ScalarMap[str, float]
    total_sites: int
    rule_note: str
    quarantined: _containers.RepeatedCompositeFieldContainer[QuarantinedSite]
    unevaluated: _containers.ScalarMap[str, str]
    def __init__(self, round: _Optional[int] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., started_at: _Optional[float] = ..., seconds: _Optional[float] = ..., phase_seconds: _Optional[_Mapping[str, float]] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., train_metrics: _Optional[_Mapping[str, float]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., model_digest: _Optional[str] = ..., is_best: _Optional[bool] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., update_norm: _Optional[float] = ..., simulated_seconds: _Optional[float] = ..., algorithm_scalars: _Optional[_Mapping[str, float]] = ..., total_sites: _Optional[int] = ..., rule_note: _Optional[str] = ..., quarantined: _Optional[_Iterable[_Union[QuarantinedSite, _Mapping]]] = ..., unevaluated: _Optional[_Mapping[str, str]] = ...) -> None: ...

class QuarantinedSite(_message.Message):
    __slots__ = ("site", "since_round", "releases", "reason")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SINCE_ROUND_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    site: str
    since_round: int
    releases: int
    reason: str
    def __init__(self, site: _Optional[str] = ..., since_round: _Optional[int] = ..., releases: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("site", "outcome", "reason", "examples", "weight", "update_norm", "train_seconds", "transfer_seconds", "bytes_up", "bytes_down", "train_metrics", "metrics", "update_digest", "validation_examples", "oracle_calls", "peak_memory", "staleness", "scores")
    class TrainMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SITE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    TRAIN_METRICS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ORACLE_CALLS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    site: str
    outcome: str
    reason: str
    examples: int
    weight: float
    update_norm: float
    train_seconds: float
    transfer_seconds: float
    bytes_up: int
    bytes_down: int
    train_metrics: _containers.ScalarMap[str, float]
    metrics: _containers.ScalarMap[str, float]
    update_digest: str
    validation_examples: int
    oracle_calls: int
    peak_memory: int
    staleness: int
    scores: _containers.ScalarMap[str, float]
    def __init__(self, site: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., examples: _Optional[int] = ..., weight: _Optional[float] = ..., update_norm: _Optional[float] = ..., train_seconds: _Optional[float] = ..., transfer_seconds: _Optional[float] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., train_metrics: _Optional[_Mapping[str, float]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., update_digest: _Optional[str] = ..., validation_examples: _Optional[int] = ..., oracle_calls: _Optional[int] = ..., peak_memory: _Optional[int] = ..., staleness: _Optional[int] = ..., scores: _Optional[_Mapping[str, float]] = ...) -> None: ...

class WatchExperimentRequest(_message.Message):
    __slots__ = ("experiment", "cursor")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    cursor: int
    def __init__(self, experiment: _Optional[str] = ..., cursor: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "at", "experiment", "site", "kind", "text", "transition", "report", "phase")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at: float
    experiment: str
    site: str
    kind: str
    text: str
    transition: Transition
    report: RoundReport
    phase: PhaseChange
    def __init__(self, sequence: _Optional[int] = ..., at: _Optional[float] = ..., experiment: _Optional[str] = ..., site: _Optional[str] = ..., kind: _Optional[str] = ..., text: _Optional[str] = ..., transition: _Optional[_Union[Transition, _Mapping]] = ..., report: _Optional[_Union[RoundReport, _Mapping]] = ..., phase: _Optional[_Union[PhaseChange, _Mapping]] = ...) -> None: ...

class PhaseChange(_message.Message):
    __slots__ = ("round", "phase", "sites_asked", "sites_done")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SITES_ASKED_FIELD_NUMBER: _ClassVar[int]
    SITES_DONE_FIELD_NUMBER: _ClassVar[int]
    round: int
    phase: str
    sites_asked: int
    sites_done: int
    def __init__(self, round: _Optional[int] = ..., phase: _Optional[str] = ..., sites_asked: _Optional[int] = ..., sites_done: _Optional[int] = ...) -> None: ...

class CancelExperimentRequest(_message.Message):
    __slots__ = ("experiment", "reason")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    reason: str
    def __init__(self, experiment: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelExperimentReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ExperimentState
    def __init__(self, state: _Optional[_Union[ExperimentState, str]] = ...) -> None: ...

class ReleaseSiteRequest(_message.Message):
    __slots__ = ("experiment", "site", "reason")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    site: str
    reason: str
    def __init__(self, experiment: _Optional[str] = ..., site: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReleaseSiteReply(_message.Message):
    __slots__ = ("released", "quarantined_since")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_SINCE_FIELD_NUMBER: _ClassVar[int]
    released: bool
    quarantined_since: int
    def __init__(self, released: _Optional[bool] = ..., quarantined_since: _Optional[int] = ...) -> None: ...

class ReadLogsRequest(_message.Message):
    __slots__ = ("experiment", "site", "follow", "cursor")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    site: str
    follow: bool
    cursor: int
    def __init__(self, experiment: _Optional[str] = ..., site: _Optional[str] = ..., follow: _Optional[bool] = ..., cursor: _Optional[int] = ...) -> None: ...

class LogLines(_message.Message):
    __slots__ = ("lines", "cursor")
    LINES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    cursor: int
    def __init__(self, lines: _Optional[_Iterable[str]] = ..., cursor: _Optional[int] = ...) -> None: ...

class DownloadArtifactRequest(_message.Message):
    __slots__ = ("experiment", "name", "offset", "digest")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    name: str
    offset: int
    digest: str
    def __init__(self, experiment: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class DownloadArtifactReply(_message.Message):
    __slots__ = ("artifact", "chunk")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    chunk: _tensors_pb2.Chunk
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ..., chunk: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ...) -> None: ...

class ListEnvoysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListEnvoysReply(_message.Message):
    __slots__ = ("envoys",)
    ENVOYS_FIELD_NUMBER: _ClassVar[int]
    envoys: _containers.RepeatedCompositeFieldContainer[EnvoySummary]
    def __init__(self, envoys: _Optional[_Iterable[_Union[EnvoySummary, _Mapping]]] = ...) -> None: ...

class EnvoySummary(_message.Message):
    __slots__ = ("site", "online", "last_seen_at", "software", "shards", "running", "quarantined_in")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_IN_FIELD_NUMBER: _ClassVar[int]
    site: str
    online: bool
    last_seen_at: float
    software: str
    shards: _containers.RepeatedCompositeFieldContainer[ShardOffer]
    running: int
    quarantined_in: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, site: _Optional[str] = ..., online: _Optional[bool] = ..., last_seen_at: _Optional[float] = ..., software: _Optional[str] = ..., shards: _Optional[_Iterable[_Union[ShardOffer, _Mapping]]] = ..., running: _Optional[int] = ..., quarantined_in: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("protocol", "federation", "now", "caller", "certificate_expires_at", "caller_expires_at")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    CALLER_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    protocol: _tensors_pb2.ProtocolRange
    federation: str
    now: float
    caller: str
    certificate_expires_at: float
    caller_expires_at: float
    def __init__(self, protocol: _Optional[_Union[_tensors_pb2.ProtocolRange, _Mapping]] = ..., federation: _Optional[str] = ..., now: _Optional[float] = ..., caller: _Optional[str] = ..., certificate_expires_at: _Optional[float] = ..., caller_expires_at: _Optional[float] = ...) -> None: ...

class AttendRequest(_message.Message):
    __slots__ = ("hello", "offers", "answer", "status", "logs")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OFFERS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    hello: EnvoyHello
    offers: ShardOffers
    answer: AssignmentAnswer
    status: ParticipationStatus
    logs: ReleasedLogs
    def __init__(self, hello: _Optional[_Union[EnvoyHello, _Mapping]] = ..., offers: _Optional[_Union[ShardOffers, _Mapping]] = ..., answer: _Optional[_Union[AssignmentAnswer, _Mapping]] = ..., status: _Optional[_Union[ParticipationStatus, _Mapping]] = ..., logs: _Optional[_Union[ReleasedLogs, _Mapping]] = ...) -> None: ...

class EnvoyHello(_message.Message):
    __slots__ = ("protocol", "running", "director_epoch")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_EPOCH_FIELD_NUMBER: _ClassVar[int]
    protocol: _tensors_pb2.ProtocolRange
    running: _containers.RepeatedScalarFieldContainer[str]
    director_epoch: int
    def __init__(self, protocol: _Optional[_Union[_tensors_pb2.ProtocolRange, _Mapping]] = ..., running: _Optional[_Iterable[str]] = ..., director_epoch: _Optional[int] = ...) -> None: ...

class ShardOffer(_message.Message):
    __slots__ = ("name", "kind", "train_examples", "validation_examples", "sample_shape", "target_shape", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    train_examples: int
    validation_examples: int
    sample_shape: _containers.RepeatedScalarFieldContainer[int]
    target_shape: _containers.RepeatedScalarFieldContainer[int]
    description: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., train_examples: _Optional[int] = ..., validation_examples: _Optional[int] = ..., sample_shape: _Optional[_Iterable[int]] = ..., target_shape: _Optional[_Iterable[int]] = ..., description: _Optional[str] = ...) -> None: ...

class ShardOffers(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardOffer]
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardOffer, _Mapping]]] = ...) -> None: ...

class AssignmentAnswer(_message.Message):
    __slots__ = ("experiment", "answer", "reason")
    class Answer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ANSWER_UNSPECIFIED: _ClassVar[AssignmentAnswer.Answer]
        ANSWER_ACCEPTED: _ClassVar[AssignmentAnswer.Answer]
        ANSWER_REFUSED: _ClassVar[AssignmentAnswer.Answer]
        ANSWER_PENDING: _ClassVar[AssignmentAnswer.Answer]
    ANSWER_UNSPECIFIED: AssignmentAnswer.Answer
    ANSWER_ACCEPTED: AssignmentAnswer.Answer
    ANSWER_REFUSED: AssignmentAnswer.Answer
    ANSWER_PENDING: AssignmentAnswer.Answer
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    answer: AssignmentAnswer.Answer
    reason: str
    def __init__(self, experiment: _Optional[str] = ..., answer: _Optional[_Union[AssignmentAnswer.Answer, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ParticipationStatus(_message.Message):
    __slots__ = ("experiment", "state", "error_class", "detail")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_CLASS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    state: str
    error_class: str
    detail: str
    def __init__(self, experiment: _Optional[str] = ..., state: _Optional[str] = ..., error_class: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ReleasedLogs(_message.Message):
    __slots__ = ("experiment", "lines")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, experiment: _Optional[str] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...

class AttendReply(_message.Message):
    __slots__ = ("welcome", "assignment", "withdrawal")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    welcome: EnvoyWelcome
    assignment: Assignment
    withdrawal: Withdrawal
    def __init__(self, welcome: _Optional[_Union[EnvoyWelcome, _Mapping]] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., withdrawal: _Optional[_Union[Withdrawal, _Mapping]] = ...) -> None: ...

class EnvoyWelcome(_message.Message):
    __slots__ = ("protocol", "director_epoch", "now")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    director_epoch: int
    now: float
    def __init__(self, protocol: _Optional[int] = ..., director_epoch: _Optional[int] = ..., now: _Optional[float] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("experiment", "shards", "aggregator_address", "aggregator_server_name", "manifest", "signature", "signing_key", "submitted_by", "bundle_bytes")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    shards: _containers.RepeatedScalarFieldContainer[str]
    aggregator_address: str
    aggregator_server_name: str
    manifest: bytes
    signature: bytes
    signing_key: bytes
    submitted_by: str
    bundle_bytes: int
    def __init__(self, experiment: _Optional[str] = ..., shards: _Optional[_Iterable[str]] = ..., aggregator_address: _Optional[str] = ..., aggregator_server_name: _Optional[str] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signing_key: _Optional[bytes] = ..., submitted_by: _Optional[str] = ..., bundle_bytes: _Optional[int] = ...) -> None: ...

class Withdrawal(_message.Message):
    __slots__ = ("experiment", "reason")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    reason: str
    def __init__(self, experiment: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class FetchBundleRequest(_message.Message):
    __slots__ = ("experiment", "offset")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    offset: int
    def __init__(self, experiment: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchBundleReply(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: _tensors_pb2.Chunk
    def __init__(self, chunk: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ...) -> None: ...

class SuperviseRequest(_message.Message):
    __slots__ = ("hello", "status", "report", "event", "end")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    hello: AggregatorHello
    status: AggregatorStatus
    report: RoundReport
    event: Event
    end: ExperimentEnd
    def __init__(self, hello: _Optional[_Union[AggregatorHello, _Mapping]] = ..., status: _Optional[_Union[AggregatorStatus, _Mapping]] = ..., report: _Optional[_Union[RoundReport, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., end: _Optional[_Union[ExperimentEnd, _Mapping]] = ...) -> None: ...

class AggregatorHello(_message.Message):
    __slots__ = ("protocol", "experiment", "epoch", "address", "metrics_address", "last_sequence")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    protocol: _tensors_pb2.ProtocolRange
    experiment: str
    epoch: int
    address: str
    metrics_address: str
    last_sequence: int
    def __init__(self, protocol: _Optional[_Union[_tensors_pb2.ProtocolRange, _Mapping]] = ..., experiment: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., metrics_address: _Optional[str] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class AggregatorStatus(_message.Message):
    __slots__ = ("state", "reason", "sites")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    state: str
    reason: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, state: _Optional[str] = ..., reason: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ...) -> None: ...

class ExperimentEnd(_message.Message):
    __slots__ = ("outcome", "reason", "degraded", "sequence")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    reason: str
    degraded: bool
    sequence: int
    def __init__(self, outcome: _Optional[str] = ..., reason: _Optional[str] = ..., degraded: _Optional[bool] = ..., sequence: _Optional[int] = ...) -> None: ...

class SuperviseReply(_message.Message):
    __slots__ = ("welcome", "roster", "acknowledge", "stop", "revoked")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    welcome: AggregatorWelcome
    roster: Roster
    acknowledge: Acknowledge
    stop: StopOrder
    revoked: RevokedSerials
    def __init__(self, welcome: _Optional[_Union[AggregatorWelcome, _Mapping]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., acknowledge: _Optional[_Union[Acknowledge, _Mapping]] = ..., stop: _Optional[_Union[StopOrder, _Mapping]] = ..., revoked: _Optional[_Union[RevokedSerials, _Mapping]] = ...) -> None: ...

class AggregatorWelcome(_message.Message):
    __slots__ = ("protocol", "last_sequence", "revoked")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    last_sequence: int
    revoked: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[int] = ..., last_sequence: _Optional[int] = ..., revoked: _Optional[_Iterable[str]] = ...) -> None: ...

class RevokedSerials(_message.Message):
    __slots__ = ("serials",)
    SERIALS_FIELD_NUMBER: _ClassVar[int]
    serials: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, serials: _Optional[_Iterable[str]] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[RosterSite]
    def __init__(self, sites: _Optional[_Iterable[_Union[RosterSite, _Mapping]]] = ...) -> None: ...

class RosterSite(_message.Message):
    __slots__ = ("site", "train_examples", "validation_examples", "releases", "signing_key")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    site: str
    train_examples: int
    validation_examples: int
    releases: int
    signing_key: bytes
    def __init__(self, site: _Optional[str] = ..., train_examples: _Optional[int] = ..., validation_examples: _Optional[int] = ..., releases: _Optional[int] = ..., signing_key: _Optional[bytes] = ...) -> None: ...

class Acknowledge(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class StopOrder(_message.Message):
    __slots__ = ("outcome", "reason")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    reason: str
    def __init__(self, outcome: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class UploadArtifactRequest(_message.Message):
    __slots__ = ("artifact", "chunk")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    chunk: _tensors_pb2.Chunk
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ..., chunk: _Optional[_Union[_tensors_pb2.Chunk, _Mapping]] = ...) -> None: ...

class UploadArtifactReply(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("signing_request",)
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "authority")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    authority: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., authority: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("signing_request",)
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...
