"""Our errors as gRPC status, and back: the one place that knows both.

Rules, in order:

1. A status carries the class of our error in the trailing metadata ``federation-error``, so the client catches what
   the server raised, with the same text; ``federation-refusal`` and ``federation-task-error`` carry the fact of
   UpdateRejectedError and TaskError.
2. ConfigurationError and StorageError speak of the server's own files: their class crosses, their text does not.
3. Anything that is not ours is INTERNAL without any text of its own; the server's log has it.
4. A status without our metadata was made by the library or a proxy: UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED and
   INTERNAL are a TransportError (a retry may help), the rest is mapped by its code.

A class unknown to the receiver (a newer peer) falls back to rule 4. The server's caller may be hostile and so may the
server: metadata only ever selects from a fixed table.
"""

from __future__ import annotations

from typing import NamedTuple

import grpc

from federation import errors
from federation.errors import FederationError, Refusal, TaskError, UpdateRejectedError

ERROR_KEY = "federation-error"
REFUSAL_KEY = "federation-refusal"
TASK_ERROR_KEY = "federation-task-error"
MAX_TEXT = 2000
"""Characters of error text that cross: trailing metadata must stay below gRPC's 8 KiB in UTF-8 percent-encoding."""

_CODES: dict[type[FederationError], grpc.StatusCode] = {
    errors.InvalidNameError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PlanError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PeerError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.IdentityError: grpc.StatusCode.PERMISSION_DENIED,
    errors.BundleError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StaleRoundError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UpdateRejectedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MalformedMessageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TransportError: grpc.StatusCode.UNAVAILABLE,
    errors.TaskError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PrivacyError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StorageError: grpc.StatusCode.INTERNAL,
    errors.FederationError: grpc.StatusCode.UNKNOWN,
}
_CLASSES = {error_class.__name__: error_class for error_class in _CODES}
_WITHHELD = {
    errors.ConfigurationError: "the server is not set up for this; its operator finds the reason in its log",
    errors.StorageError: "the server's storage failed; its operator finds the reason in its log",
}
_INTERNAL = "the server failed; its operator finds the reason in its log"
_FALLBACK: dict[grpc.StatusCode, type[FederationError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.TransportError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.TransportError,
    grpc.StatusCode.CANCELLED: errors.TransportError,
    grpc.StatusCode.INTERNAL: errors.TransportError,
    grpc.StatusCode.UNAUTHENTICATED: errors.IdentityError,
    grpc.StatusCode.PERMISSION_DENIED: errors.IdentityError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.MalformedMessageError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitError,
    grpc.StatusCode.ABORTED: errors.ConflictError,
}


class Status(NamedTuple):
    """What a refused call ends with."""

    code: grpc.StatusCode
    text: str
    metadata: tuple[tuple[str, str], ...]


def to_status(error: BaseException) -> Status:
    """Return the status that tells a client about `error`.

    A foreign exception becomes INTERNAL with a fixed text: a peer never sees internal text.
    """
    if not isinstance(error, FederationError):
        return Status(grpc.StatusCode.INTERNAL, _INTERNAL, ((ERROR_KEY, errors.PeerError.__name__),))
    known = next(base for base in type(error).__mro__ if base in _CODES)
    code = _CODES[known]
    if getattr(error, "is_unauthenticated", False):
        code = grpc.StatusCode.UNAUTHENTICATED
    metadata = [(ERROR_KEY, known.__name__)]
    if isinstance(error, UpdateRejectedError):
        metadata.append((REFUSAL_KEY, error.refusal.value))
    if isinstance(error, TaskError):
        metadata.append((TASK_ERROR_KEY, _ascii(error.error_class)))
    text = _WITHHELD.get(known, str(error))
    return Status(code, text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…", tuple(metadata))


def from_rpc_error(error: grpc.aio.AioRpcError, call: str = "the call") -> FederationError:
    """Return the error of ours that a failed call stands for; raise it ``from`` the original.

    Args:
        error: what grpc raised.
        call: what was called, for the text of errors that the other side did not word itself.
    """
    metadata = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    text = error.details() or ""
    known = _CLASSES.get(metadata.get(ERROR_KEY, ""))
    if known is UpdateRejectedError:
        refusals = {refusal.value: refusal for refusal in Refusal}
        refusal = refusals.get(metadata.get(REFUSAL_KEY, ""))
        return UpdateRejectedError(refusal, text) if refusal else errors.PeerError(text)
    if known is TaskError:
        return TaskError(metadata.get(TASK_ERROR_KEY, "unknown"))
    if known is not None:
        return known(text)
    return _without_metadata(error.code(), text, call)


def _without_metadata(code: grpc.StatusCode, text: str, call: str) -> FederationError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.TransportError(f"{call} was not answered in time")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.PeerError(f"{call} is not known to the other side: it runs another version or another service")
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.TransportError(f"{call} did not reach the other side ({text}): {_suspicion(text)}")
    error_class = _FALLBACK.get(code, errors.PeerError)
    return error_class(f"{call} failed with {code.name}: {text}")


def _suspicion(text: str) -> str:
    """Return what to look at when nothing was reached; `text` is gRPC's, which names the system's error last."""
    if "Connection refused" in text:
        return "nothing listens at this address"
    if "address lookup failed" in text or "DNS resolution failed" in text:
        return "the host has no address, or there is no network"
    if "Hostname Verification Check failed" in text:
        return "the server's certificate carries another name: it is of another federation, or another server"
    return (
        "is it running at this address, and does it trust this certificate? A server ends the connection of a client "
        "whose certificate is missing, expired or of another authority without saying why"
    )


def _ascii(text: str) -> str:
    """Metadata values are printable ASCII; a class name is cut to that."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)[:200]
