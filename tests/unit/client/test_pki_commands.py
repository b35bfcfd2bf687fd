from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from federation.client.pki_commands import app
from federation.errors import ConfigurationError, FederationError, IdentityError, InvalidNameError, PeerError
from federation.names import FederationName, Identity, Role
from federation.pki import requests
from federation.pki.authority import CertificateAuthority
from federation.pki.known import load_known
from federation.pki.revocation import RevocationList
from federation.runtime.clock import SystemClock
from federation.telemetry.metrics import Metrics
from federation.transport.authority import Authority
from federation.transport.credentials import TlsFiles
from federation.transport.server import RpcServer
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICE = pb.DESCRIPTOR.services_by_name["Director"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pki(*arguments: object) -> dict[str, Any]:
    """Run a command with --json, and return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments] + ["--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def test_a_federations_certificates_are_made_as_the_readme_says(tmp_path: Path) -> None:
    assert pki("init", "heart")["federation"] == "heart"
    for role, name, folder in (
        ("director", "", "director"),
        ("envoy", "north", "envoy-north"),
        ("user", "alice", "user-alice"),
        ("operator", "olga", "operator-olga"),
    ):
        facts = pki("issue", role, *([name] if name else []))
        assert facts["folder"] == folder
        read = TlsFiles.in_folder(tmp_path / folder).check(now=time.time())
        assert read.identity.spiffe == facts["identity"] == f"spiffe://heart/{role}/{name or 'director'}"
        assert f"{read.serial:x}" == facts["serial"]


def test_people_get_text_and_scripts_get_json() -> None:
    result = CliRunner().invoke(app, ["init", "heart"])
    assert "keep ca/ca.key secret" in result.stdout
    with pytest.raises(json.JSONDecodeError):
        json.loads(result.stdout)


def test_nothing_is_overwritten_unless_forced() -> None:
    pki("init", "heart")
    pki("issue", "director")
    pki("signing-key", "alice.key")
    pki("join-token", "north")
    for command in (["init", "heart"], ["issue", "director"], ["signing-key", "alice.key"], ["join-token", "north"]):
        with pytest.raises(ConfigurationError, match="exists"):
            pki(*command)
    for command in (["signing-key", "alice.key"], ["join-token", "north"], ["issue", "director"], ["init", "heart"]):
        pki(*command, "--force")


@pytest.mark.parametrize("name", ["a/b", "../x", "North", ""])
def test_names_with_slashes_are_refused(name: str, tmp_path: Path) -> None:
    pki("init", "heart")
    commands = [["join-token", name], ["init", name, "--ca", "other"]]
    if name:
        commands.append(["issue", "envoy", name])
    for command in commands:
        with pytest.raises(InvalidNameError):
            pki(*command)
    assert {path.name for path in tmp_path.iterdir()} == {"ca"}


def test_a_role_other_than_director_needs_a_name() -> None:
    pki("init", "heart")
    result = CliRunner().invoke(app, ["issue", "envoy"])
    assert result.exit_code == 2


@pytest.mark.parametrize("role", ["aggregator", "joiner", "king"])
def test_roles_that_are_not_issued_by_hand_are_refused(role: str) -> None:
    assert CliRunner().invoke(app, ["issue", role, "x"]).exit_code == 2


def test_both_halves_of_a_signing_key_have_one_fingerprint_which_is_pinned(tmp_path: Path) -> None:
    made = pki("signing-key", "alice.key")
    assert pki("fingerprint", "alice.key")["fingerprint"] == made["fingerprint"]
    assert pki("fingerprint", "alice.key.pub")["fingerprint"] == made["fingerprint"]
    pki("pin", "user", "alice", made["fingerprint"])
    pki("pin", "site", "north", "alice.key.pub")
    known = load_known(tmp_path / "known.toml")
    assert known.users == {"alice": made["fingerprint"]}
    assert known.sites == {"north": made["fingerprint"]}
    other = pki("signing-key", "eve.key")["fingerprint"]
    with pytest.raises(ConfigurationError, match="another channel"):
        pki("pin", "user", "alice", other)


def test_a_certificate_is_revoked_by_file_or_by_serial(tmp_path: Path) -> None:
    pki("init", "heart")
    serial = int(pki("issue", "envoy", "north")["serial"], 16)
    assert pki("revoke", "envoy-north/cert.pem")["changed"]
    assert not pki("revoke", f"{serial:x}")["changed"]
    assert pki("revoke", "abc")["changed"]
    assert RevocationList(tmp_path / "revoked.txt").serials == {serial, 0xABC}


def test_a_certificates_fingerprint_is_printed_with_what_it_says() -> None:
    made = pki("init", "heart")
    assert pki("fingerprint", "ca/ca.pem")["fingerprint"] == made["fingerprint"]
    assert pki("fingerprint", "ca/ca.pem")["identity"] == "spiffe://heart"


class _Director:
    """The director's enrolment and nothing else; its service has many more methods."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self.authority = authority
        self.certify_as: Identity | None = None
        self.spent: set[int] = set()

    async def Enrol(self, request: pb.EnrolRequest, call: Any) -> pb.EnrolReply:
        def spend() -> bool:
            fresh = call.peer.serial not in self.spent
            self.spent.add(call.peer.serial)
            return fresh

        now = time.time()
        if self.certify_as is not None:
            key = requests.read_request(request.signing_request)
            issued = self.authority.issue(self.certify_as, key, now=now)
        else:
            issued = requests.enrol(
                self.authority, call.peer.identity, request.signing_request, now=now, lifetime_s=3600, spend=spend
            )
        return pb.EnrolReply(certificate=issued.pem, authority=self.authority.certificate_pem)

    async def Renew(self, request: pb.RenewRequest, call: Any) -> pb.RenewReply:
        identity, now = self.certify_as or call.peer.identity, time.time()
        issued = requests.renew(self.authority, identity, request.signing_request, now=now, lifetime_s=3600)
        return pb.RenewReply(certificate=issued.pem)

    def __getattr__(self, name: str) -> Any:
        if name not in {method.name for method in SERVICE.methods}:
            raise AttributeError(name)
        return self.Enrol


@pytest.fixture
def director(tmp_path: Path) -> Iterator[tuple[_Director, str]]:
    """A director in a thread of its own: the command runs its own event loop."""
    pki("init", "heart")
    pki("issue", "director")
    service = _Director(CertificateAuthority.load(tmp_path / "ca"))
    address: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        rules = {
            f"/{SERVICE.full_name}/{method.name}": frozenset({Role.JOINER, Role.USER}) for method in SERVICE.methods
        }
        authority = Authority(FederationName("heart"), rules, clock=SystemClock())
        server = RpcServer(authority, Metrics(), tls=TlsFiles.in_folder(tmp_path / "director"))
        server.add_service(SERVICE, service)
        address.append(f"127.0.0.1:{await server.start()}")
        ready.set()
        await asyncio.to_thread(done.wait)
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    yield service, address[0]
    done.set()
    thread.join()


def test_a_new_site_enrols_once_with_its_token(director: tuple[_Director, str], tmp_path: Path) -> None:
    _, address = director
    pki("join-token", "north")
    assert (
        pki("enrol", "north.token", "--director", address, "--out", "site")["identity"] == "spiffe://heart/envoy/north"
    )
    facts = TlsFiles.in_folder(tmp_path / "site").check(now=time.time())
    assert facts.identity == Identity(federation=FederationName("heart"), role=Role.ENVOY, name="north")
    with pytest.raises(IdentityError, match="used before"):
        pki("enrol", "north.token", "--director", address, "--out", "again")
    assert not (tmp_path / "again" / "cert.pem").exists()


def test_files_that_exist_do_not_cost_the_token(director: tuple[_Director, str], tmp_path: Path) -> None:
    service, address = director
    pki("join-token", "north")
    (tmp_path / "key.pem").write_text("mine")
    with pytest.raises(ConfigurationError, match="exists"):
        pki("enrol", "north.token", "--director", address)
    assert service.spent == set()


def test_a_certificate_for_somebody_else_is_not_taken(director: tuple[_Director, str], tmp_path: Path) -> None:
    service, address = director
    service.certify_as = Identity(federation=FederationName("heart"), role=Role.USER, name="north")
    pki("join-token", "north")
    with pytest.raises(PeerError, match="heart/user/north"):
        pki("enrol", "north.token", "--director", address, "--out", "site")
    assert not (tmp_path / "site" / "cert.pem").exists()


def test_a_user_renews_his_own_certificate(director: tuple[_Director, str], tmp_path: Path) -> None:
    service, address = director
    pki("issue", "user", "alice", "--days", "2")
    folder = tmp_path / "user-alice"
    (folder / "client.toml").write_text(f'federation = "heart"\naddress = "{address}"\n')
    files = TlsFiles.in_folder(folder)
    before, key = files.facts(), files.key.read_bytes()
    printed = pki("renew", "--profile", folder)
    after = files.check(now=time.time())
    assert (printed["identity"], printed["serial"]) == ("spiffe://heart/user/alice", f"{after.serial:x}")
    assert printed["expires_at"] == after.expires_at
    assert after.serial != before.serial
    assert files.key.read_bytes() != key

    result = CliRunner().invoke(app, ["renew", "--profile", str(folder / "client.toml")], catch_exceptions=False)
    assert "expires at" in result.stdout
    service.certify_as = Identity(federation=FederationName("heart"), role=Role.USER, name="bob")
    held = files.facts()
    with pytest.raises(PeerError, match="user/bob"):
        pki("renew", "--profile", folder)
    assert files.check(now=time.time()) == held


def test_what_is_no_token_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(FederationError, match="not a join token"):
        pki("enrol", "x", "--director", "127.0.0.1:1")


def test_what_is_neither_a_certificate_file_nor_a_serial_number_is_not_revoked(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no certificate file 'certpem', and 'certpem' is not a serial number"):
        pki("revoke", "certpem")
    assert not (tmp_path / "revoked.txt").exists()


@pytest.mark.parametrize("text", ["nonsense", "-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_named_without_a_librarys_own_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=r"notes.txt is not (an unencrypted PEM|a public) key$"):
        pki("fingerprint", "notes.txt")
