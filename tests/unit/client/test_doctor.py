"""doctor: what each check makes of what it finds. A whole examination against a director is an integration test."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from federation.client.doctor import (
    CLOCK_TOLERANCE_S,
    EXPIRY_WARNING_S,
    check_clock,
    check_expiry,
    check_identity,
    check_reachable,
    check_signing_key,
    check_version,
    examine,
)
from federation.client.profile import load_profile
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.signing import fingerprint_of_file, make_signing_key
from federation.v1 import director_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.versions import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALICE = Identity(federation=FederationName("demo"), role=Role.USER, name="alice")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with sound certificates and a director that does not run."""
    for name in ("ADDRESS", "FEDERATION", "HOME", "PROFILE"):
        monkeypatch.delenv(f"FEDERATION_{name}", raising=False)
    now = time.time()
    CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=now)
    folder = tmp_path / "alice"
    authority = CertificateAuthority.load(tmp_path / "ca")
    issue_identity(authority, ALICE, folder, now=now)
    (folder / "client.toml").write_text(f'federation = "demo"\naddress = "127.0.0.1:{closed_port}"\n')
    return folder


@pytest.mark.parametrize(
    ("theirs", "outcome", "said"),
    [
        (100.5, "good", "within"),
        (100.0 - CLOCK_TOLERANCE_S, "good", "within"),
        (101.0 + CLOCK_TOLERANCE_S, "good", "within"),
        (201.0, "warning", "100 s behind"),
        (0.0, "warning", "100 s ahead of"),
    ],
)
def test_clock_is_judged_by_how_far_it_must_be_off(theirs: float, outcome: str, said: str) -> None:
    finding = check_clock(theirs, before=100.0, after=101.0)
    assert finding.outcome == outcome
    assert said in finding.found
    assert bool(finding.advice) == (outcome != "good")


def test_a_certificate_that_ends_soon_is_a_warning_with_advice() -> None:
    (soon,) = check_expiry("our certificate", EXPIRY_WARNING_S - 1, 0.0)
    assert soon.outcome == "warning" and "renew" in soon.advice
    (later,) = check_expiry("our certificate", EXPIRY_WARNING_S + 1, 0.0)
    assert later.outcome == "good"


def test_an_expiry_nobody_told_is_no_finding() -> None:
    assert list(check_expiry("director's certificate", 0.0, 1.0)) == []


def test_a_common_protocol_version_is_good() -> None:
    reply = pb.DescribeReply(protocol=tensors_pb2.ProtocolRange(lowest=1, highest=PROTOCOL.highest, software="9.9"))
    finding = check_version(reply)
    assert finding.outcome == "good" and "9.9" in finding.found


def test_no_common_protocol_version_is_bad_and_says_what_to_update() -> None:
    finding = check_version(pb.DescribeReply(protocol=tensors_pb2.ProtocolRange(lowest=90, highest=99)))
    assert finding.outcome == "bad" and finding.advice


def test_an_open_port_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert check_reachable(f"127.0.0.1:{server.getsockname()[1]}").outcome == "good"


@pytest.mark.parametrize("address", ["127.0.0.1:nonsense", "nonsense", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_one_is_bad(address: str) -> None:
    finding = check_reachable(address)
    assert finding.outcome == "bad" and "give host:port" in finding.found and "`address`" in finding.advice


def test_without_a_profile_it_says_how_to_make_one(tmp_path: Path) -> None:
    (finding,) = examine(tmp_path / "none.toml")
    assert finding.outcome == "bad" and "pki issue user" in finding.found


def test_a_director_that_does_not_run_is_found_and_what_needs_no_director_is_checked_too(home: Path) -> None:
    findings = list(examine(home))
    assert [(finding.check, finding.outcome) for finding in findings] == [
        ("profile", "good"),
        ("files", "good"),
        ("reachable", "bad"),
        ("signing key", "warning"),
    ]
    assert "spiffe://demo/user/alice" in findings[1].found


def test_a_server_that_never_greets_is_reached_and_its_chain_is_bad(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        profile, port = home / "client.toml", silent.getsockname()[1]
        profile.write_text(f'federation = "demo"\naddress = "127.0.0.1:{port}"\ntimeout_s = 0.5\n')
        reachable, chain = list(examine(home))[2:4]
    assert (reachable.check, reachable.outcome) == ("reachable", "good")
    assert (chain.check, chain.outcome) == ("certificate chain", "bad")
    assert "director.demo.internal" in chain.advice and "this machine's says" in chain.advice


def test_a_profile_without_certificates_is_a_warning_on_this_machine_and_bad_towards_another(home: Path) -> None:
    profile = home / "client.toml"
    profile.write_text(profile.read_text() + 'insecure_user = "alice"\n')
    files, reachable = list(examine(home))[1:3]
    assert (files.check, files.outcome, reachable.outcome) == ("files", "warning", "bad")
    assert "spiffe://demo/user/alice" in files.found
    profile.write_text('federation = "demo"\naddress = "hub.example.org:8443"\ninsecure_user = "alice"\n')
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert "'hub.example.org'" in last.found


def test_a_missing_certificate_is_named(home: Path) -> None:
    (home / "cert.pem").unlink()
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert "cert.pem" in last.found


def test_a_certificate_of_another_federation_is_told_before_anything_is_dialled(home: Path) -> None:
    profile = home / "client.toml"
    profile.write_text(profile.read_text().replace('"demo"', '"other"'))
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert "spiffe://demo/user/alice" in last.found and "'other'" in last.found and "`federation`" in last.advice


def test_a_key_others_can_read_is_refused(home: Path) -> None:
    (home / "key.pem").chmod(0o644)
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert "key.pem" in last.found


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_key_of_a_kind_unknown_here_is_told(
    home: Path, name: str, on_unknown_curve: Callable[[bytes], bytes]
) -> None:
    (home / name).write_bytes(on_unknown_curve((home / name).read_bytes()))
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert f"{name} has a key of a kind unknown here" in last.found


def test_an_expired_certificate_is_told_before_anything_is_dialled(home: Path, tmp_path: Path) -> None:
    then = time.time() - 3 * 365 * 86400
    authority = CertificateAuthority.create(FederationName("demo"), tmp_path / "old", now=then)
    issue_identity(authority, ALICE, home, now=then, force=True)
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert "expired" in last.found


def test_a_clock_that_is_days_behind_is_told_before_anything_is_dialled(home: Path, tmp_path: Path) -> None:
    soon = time.time() + 3 * 86400
    issue_identity(CertificateAuthority.load(tmp_path / "ca"), ALICE, home, now=soon, force=True)
    last = list(examine(home))[-1]
    assert (last.check, last.outcome) == ("files", "bad")
    assert "this machine's clock says" in last.found and "clock" in last.advice


@pytest.mark.parametrize(
    ("federation", "role", "outcome"),
    [("demo", "user", "good"), ("demo", "operator", "good"), ("demo", "envoy", "bad"), ("other", "user", "bad")],
)
def test_identity_is_good_for_users_and_operators_of_this_federation(
    home: Path, federation: str, role: str, outcome: str
) -> None:
    reply = pb.DescribeReply(federation=federation, caller=f"spiffe://{federation}/{role}/alice")
    finding = check_identity(reply, load_profile(home))
    assert finding.outcome == outcome and bool(finding.advice) == (outcome == "bad")


def test_a_missing_signing_key_is_a_warning_that_says_how_to_make_one(home: Path) -> None:
    finding = check_signing_key(load_profile(home))
    assert finding.outcome == "warning" and "pki signing-key" in finding.advice


def test_a_signing_key_is_shown_by_its_fingerprint(home: Path) -> None:
    make_signing_key(home / "signing.key")
    finding = check_signing_key(load_profile(home))
    assert finding.outcome == "good" and finding.found == fingerprint_of_file(home / "signing.key")


def test_a_damaged_signing_key_is_bad(home: Path) -> None:
    (home / "signing.key").write_text("not a key")
    assert check_signing_key(load_profile(home)).outcome == "bad"
