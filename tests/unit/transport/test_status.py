from __future__ import annotations

import grpc
import pytest

from federation import errors
from federation.errors import FederationError, Refusal, TaskError, UpdateRejectedError
from federation.transport.authority import CallRefusal, RefusedCallError
from federation.transport.status import MAX_TEXT, from_rpc_error, to_status

PLAIN = [
    errors.InvalidNameError,
    errors.PlanError,
    errors.PeerError,
    errors.IdentityError,
    errors.BundleError,
    errors.StaleRoundError,
    errors.MalformedMessageError,
    errors.NotFoundError,
    errors.ConflictError,
    errors.LimitError,
    errors.TransportError,
    errors.PrivacyError,
    errors.FederationError,
]


def across(error: BaseException) -> FederationError:
    status = to_status(error)
    metadata = grpc.aio.Metadata(*status.metadata)
    return from_rpc_error(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), metadata, status.text))


@pytest.mark.parametrize("error_class", PLAIN, ids=lambda error_class: error_class.__name__)
def test_the_class_and_text_a_server_raised_is_what_the_client_catches(error_class: type[FederationError]) -> None:
    caught = across(error_class("got 3, expected 2"))
    assert type(caught) is error_class
    assert str(caught) == "got 3, expected 2"


@pytest.mark.parametrize("refusal", list(Refusal), ids=lambda refusal: refusal.value)
def test_a_refused_update_keeps_its_reason(refusal: Refusal) -> None:
    caught = across(UpdateRejectedError(refusal, "no"))
    assert isinstance(caught, UpdateRejectedError)
    assert caught.refusal is refusal


def test_a_failed_task_says_its_error_class_and_keeps_its_traceback() -> None:
    caught = across(TaskError("ValueErrör", traceback="patient 17"))
    assert isinstance(caught, TaskError)
    assert caught.error_class == "ValueErr?r"
    assert caught.traceback == ""


@pytest.mark.parametrize("error_class", [errors.StorageError, errors.ConfigurationError])
def test_errors_about_the_servers_own_files_cross_without_their_text(error_class: type[FederationError]) -> None:
    caught = across(error_class("/var/lib/director/state.db is full"))
    assert type(caught) is error_class
    assert "state.db" not in str(caught)


def test_a_foreign_exception_is_internal_and_tells_nothing() -> None:
    status = to_status(ZeroDivisionError("secret"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.text
    assert type(across(ZeroDivisionError("secret"))) is errors.PeerError


def test_an_unknown_caller_is_unauthenticated_and_a_known_one_is_denied() -> None:
    assert to_status(RefusedCallError(CallRefusal.EXPIRED, "old")).code is grpc.StatusCode.UNAUTHENTICATED
    assert to_status(RefusedCallError(CallRefusal.WRONG_ROLE, "no")).code is grpc.StatusCode.PERMISSION_DENIED
    assert type(across(RefusedCallError(CallRefusal.EXPIRED, "old"))) is errors.IdentityError


def test_long_text_is_cut() -> None:
    assert len(to_status(errors.PeerError("x" * 100_000)).text) == MAX_TEXT


@pytest.mark.parametrize(
    ("code", "error_class"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.TransportError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TransportError),
        (grpc.StatusCode.CANCELLED, errors.TransportError),
        (grpc.StatusCode.INTERNAL, errors.TransportError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.PeerError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.IdentityError),
        (grpc.StatusCode.DATA_LOSS, errors.PeerError),
    ],
)
def test_a_status_made_by_the_library_maps_by_its_code(
    code: grpc.StatusCode, error_class: type[FederationError]
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "details")
    assert type(from_rpc_error(error, "/a.B/C")) is error_class


REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Failed to connect to remote host: "
)


@pytest.mark.parametrize(
    ("details", "said", "certificates"),
    [
        (REFUSED + "Connection refused", "nothing listens at this address", False),
        (
            "errors resolving hub:1: [lookup error:address lookup failed for hub:1: Domain name not found]",
            "the host has no address",
            False,
        ),
        (
            REFUSED
            + "Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
            "carries another name",
            True,
        ),
        (REFUSED + "Ssl handshake failed: SSL_ERROR_SSL", "does it trust this certificate?", True),
        ("Socket closed", "does it trust this certificate?", True),
    ],
    ids=["refused", "unknown host", "another name", "handshake", "closed"],
)
def test_certificates_are_suspected_only_where_they_can_be_why(details: str, said: str, certificates: bool) -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
    text = str(from_rpc_error(error, "/a.B/C"))
    assert said in text and details in text
    assert ("certificate" in text) is certificates


def test_a_class_unknown_to_the_receiver_maps_by_its_code() -> None:
    metadata = grpc.aio.Metadata(("federation-error", "os.system"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, "gone")
    assert type(from_rpc_error(error)) is errors.NotFoundError


def test_a_refusal_unknown_to_the_receiver_is_still_the_peers_fault() -> None:
    metadata = grpc.aio.Metadata(("federation-error", "UpdateRejectedError"), ("federation-refusal", "newer"))
    error = grpc.aio.AioRpcError(grpc.StatusCode.FAILED_PRECONDITION, grpc.aio.Metadata(), metadata, "no")
    assert type(from_rpc_error(error)) is errors.PeerError
