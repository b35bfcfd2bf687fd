"""The one error tree: by class a caller knows who should mend it.

::

    FederationError
    ├── InvalidNameError        a name that breaks the name rule
    ├── ConfigurationError      the operator mends it: settings, files, certificates
    ├── PlanError               the author mends it: plan, experiment folder, model, task
    ├── PeerError               the other side broke a rule
    │   ├── IdentityError           who it is does not allow this
    │   ├── BundleError             bundle or signature is not what it should be
    │   ├── StaleRoundError         the round or epoch is over
    │   ├── UpdateRejectedError     the update was not admitted
    │   └── MalformedMessageError   the message cannot mean anything
    ├── NotFoundError           no such experiment, artifact, site
    ├── ConflictError           true, but not now: the state does not allow it
    ├── LimitError              more than the receiver allows
    ├── TransportError          a retry may help
    ├── TaskError               experiment code failed in a trainer
    ├── PrivacyError            always fails closed
    └── StorageError            disk, database or artifact store
        └── DiskFullError           there is no room; it goes on once there is

Text says got, expected, next step; facts are fields. Wrong call order by our own code is RuntimeError, a bad argument
ValueError. `federation.transport.status` maps these to gRPC status codes, in one place.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class FederationError(Exception):
    """Root of every error a user of the library may want to catch."""


class InvalidNameError(FederationError):
    """A name is not one lower-case DNS label."""


class ConfigurationError(FederationError):
    """Settings, files or certificates of this process are not usable; the operator mends them."""


class PlanError(FederationError):
    """Plan, experiment folder, model or task is not sound; its author mends it."""


class PeerError(FederationError):
    """The other side broke a rule."""


class IdentityError(PeerError):
    """The peer's certificate, or the lack of one, does not allow what it asked."""


class BundleError(PeerError):
    """A bundle, its manifest or its signature is not what it should be."""


class StaleRoundError(PeerError):
    """The round or epoch a message belongs to is over."""


class MalformedMessageError(PeerError):
    """A message cannot mean anything: a field is missing, out of range or contradicts another."""


class Refusal(Enum):
    """Why an update is not admitted; also the reason label of the refusal metric."""

    UNKNOWN_EXPERIMENT = "unknown_experiment"
    CLOSED_ROUND = "closed_round"
    STALE_EPOCH = "stale_epoch"
    NOT_ASKED = "not_asked"
    WRONG_SCHEMA = "wrong_schema"
    WRONG_CODEC = "wrong_codec"
    WRONG_MODEL = "wrong_model"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    NOT_FINITE = "not_finite"
    EXAMPLES = "examples"
    METRICS = "metrics"
    NORM = "norm"
    TOO_STALE = "too_stale"


class UpdateRejectedError(PeerError):
    """An update was not admitted.

    Attributes:
        refusal: which check refused it.
        norm: L2 norm of its parameter change where that is why; else 0.
    """

    def __init__(self, refusal: Refusal, text: str, *, norm: float = 0.0) -> None:
        super().__init__(text)
        self.refusal = refusal
        self.norm = norm


class NotFoundError(FederationError):
    """No such experiment, artifact, site or shard, or the caller may not know of it."""


class ConflictError(FederationError):
    """The request is sound, but the present state does not allow it."""


class LimitError(FederationError):
    """More than the receiver allows: size, count or rate."""


class TransportError(FederationError):
    """The other side could not be reached or the call was cut; a retry may help."""


class TaskError(FederationError):
    """Experiment code failed in a trainer.

    Attributes:
        error_class: class name of what it raised; all that leaves a silo by default.
        traceback: full text; stays at the site unless its policy releases it.
        permanent: later tasks would fail the same way.
    """

    def __init__(self, error_class: str, *, traceback: str = "", permanent: bool = False) -> None:
        super().__init__(f"experiment code failed with {error_class}")
        self.error_class = error_class
        self.traceback = traceback
        self.permanent = permanent


class PrivacyError(FederationError):
    """A privacy rule would be broken; the operation did not happen."""


class StorageError(FederationError):
    """Disk, database or artifact store failed; what was committed before is intact."""


class DiskFullError(StorageError):
    """There is no room; what was committed before is intact.

    Attributes:
        path: file that could not grow.
        needed_bytes: how much was asked for; 0 if that is not known.
        free_bytes: how much its file system says is free; a quota or size limit may leave less.
    """

    def __init__(self, path: Path, needed_bytes: int, free: int) -> None:
        super().__init__(
            f"{path}: no room for {needed_bytes} bytes, {free} are free there; free some space, raise the quota, "
            "or configure a folder on another disk"
        )
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free
