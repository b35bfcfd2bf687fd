"""``federation pki``: certificates and keys from the command line, over `federation.pki`.

Who runs what: the operator `init`, `issue`, `join-token`, `revoke`; a new site `enrol`; users and sites `signing-key`
and `fingerprint`; users `renew`; a silo's owner `pin`. Only `enrol` and `renew` touch the network. Nothing that exists
is overwritten without ``--force``, but by `renew` what it renews; private keys are readable by their owner alone.
Errors are `FederationError`; the main command words them.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.errors import ConfigurationError, PeerError
from federation.names import FederationName, Identity, Role, SiteName, check_name, director_server_name
from federation.pki.authority import DAY_S, CertificateAuthority, issue_identity, write_identity
from federation.pki.certificates import parse_certificate
from federation.pki.files import make_private_folder, read, refuse_existing, write_private
from federation.pki.keys import key_pem, make_key
from federation.pki.known import Kind
from federation.pki.known import pin as pin_key
from federation.pki.renewal import complete, describe_expiry
from federation.pki.renewal import renew as renew_files
from federation.pki.requests import make_request
from federation.pki.revocation import parse_serial
from federation.pki.revocation import revoke as revoke_serial
from federation.pki.signing import fingerprint_of_file, make_signing_key
from federation.pki.tokens import make_join_token, unpack_join_token

if TYPE_CHECKING:
    from federation.client.profile import Profile
    from federation.pki.certificates import Certificate

app = typer.Typer(
    name="pki",
    help="Make and check certificates, join tokens and signing keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what exists, for good.")]
AuthorityOption = Annotated[Path, typer.Option("--ca", help="Folder of the certificate authority.")]


class Issued(Enum):
    """Roles the operator issues by hand; aggregators get theirs from the director, joiners from `join-token`."""

    director = "director"
    envoy = "envoy"
    user = "user"
    operator = "operator"


class Pinned(Enum):
    """Whose signing key is pinned."""

    user = "user"
    site = "site"


@app.command()
def init(
    federation: Annotated[str, typer.Argument(help="Name of the federation: lower-case letters, digits, hyphens.")],
    folder: Annotated[Path, typer.Option("--ca", help="Folder to make.")] = Path("ca"),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the certificate authority of a new federation. Keep its key as you would keep the house's."""
    authority = CertificateAuthority.create(FederationName(federation), folder, now=time.time(), force=force)
    facts = {
        "federation": authority.federation,
        "authority": str(folder / "ca.pem"),
        "key": str(folder / "ca.key"),
        "fingerprint": parse_certificate(authority.certificate_pem, "authority").fingerprint,
        "expires_at": authority.expires_at,
    }
    _print(facts, as_json, f"authority of federation {federation} in {folder}/: keep {folder / 'ca.key'} secret")


@app.command()
def issue(
    role: Annotated[Issued, typer.Argument(help="What its holder may be.")],
    name: Annotated[str, typer.Argument(help="Site, user or operator; may be left out for the director.")] = "",
    folder: AuthorityOption = Path("ca"),
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default ROLE-NAME.")] = None,
    days: Annotated[float, typer.Option(min=0.01, help="Validity in days.")] = 365.0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key and its certificate: ca.pem, cert.pem and key.pem in one folder, to be carried to its holder."""
    if not name:
        if role is not Issued.director:
            raise typer.BadParameter(f"which {role.value}? Give a name", param_hint="NAME")
        name = "director"
    check_name(name, f"{role.value} name")
    authority = CertificateAuthority.load(folder)
    identity = Identity(federation=authority.federation, role=Role(role.value), name=name)
    target = out or Path(role.value if role is Issued.director else f"{role.value}-{name}")
    issued = issue_identity(authority, identity, target, now=time.time(), lifetime_s=days * DAY_S, force=force)
    facts = {
        "identity": identity.spiffe,
        "folder": str(target),
        "serial": f"{issued.serial:x}",
        "expires_at": issued.expires_at,
    }
    _print(facts, as_json, f"certificate of {identity} in {target}/, serial {issued.serial:x}, valid {days:g} days")


@app.command()
def join_token(
    site: Annotated[str, typer.Argument(help="Name the new site will have.")],
    folder: AuthorityOption = Path("ca"),
    out: Annotated[Path | None, typer.Option(help="File to write; default SITE.token.")] = None,
    hours: Annotated[float, typer.Option(min=0.01, help="Validity in hours.")] = 24.0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a token with which one new site can enrol, once. Hand it over as you would a password."""
    check_name(site, "site name")
    target = out or Path(f"{site}.token")
    now = time.time()
    token = make_join_token(CertificateAuthority.load(folder), SiteName(site), now=now, lifetime_s=hours * 3600)
    write_private(target, token.encode(), force=force)
    facts = {"site": site, "token": str(target), "expires_at": now + hours * 3600}
    _print(facts, as_json, f"join token for site {site} in {target}, good once within {hours:g} hours")


@app.command()
def enrol(
    token: Annotated[Path, typer.Argument(help="File from `federation pki join-token`.")],
    director: Annotated[str, typer.Option(help="Director's address, host:port.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("."),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Exchange a join token for this site's certificate. The key is made here and never leaves."""
    if not force:
        refuse_existing(*(out / name for name in ("key.pem", "cert.pem", "ca.pem")))
    make_private_folder(out)  # before the token is spent
    text = read(token, "join token").decode("utf-8", "replace")
    identity = asyncio.run(_enrol(text, director, out, force=force))
    facts = {"identity": identity.spiffe, "folder": str(out)}
    _print(facts, as_json, f"this site is {identity}: certificate and key in {out}/; {token} is spent, delete it")


@app.command()
def renew(
    profile: Annotated[
        Path | None, typer.Option("--profile", envvar="FEDERATION_PROFILE", help="Profile file or folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Renew your own certificate over the wire: a new key, made here, in the files the profile names."""
    from federation.client.profile import load_profile  # and with it gRPC, which no other command here needs at once

    chosen = load_profile(profile)
    certificate = asyncio.run(_renew(chosen))
    facts = {
        "identity": certificate.spiffe,
        "certificate": str(chosen.certificate),
        "serial": f"{certificate.serial:x}",
        "expires_at": certificate.expires_at,
    }
    expiry = describe_expiry(certificate.expires_at, time.time())
    _print(facts, as_json, f"{certificate.spiffe}: the certificate in {chosen.certificate} {expiry}")


@app.command()
def signing_key(
    path: Annotated[Path, typer.Argument(help="File to make; the public half goes to PATH.pub.")],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a signing key: a user's for bundles, or a site's. Others pin its fingerprint."""
    make_signing_key(path, force=force)
    found = fingerprint_of_file(path)
    facts = {"key": str(path), "public": f"{path}.pub", "fingerprint": found}
    _print(facts, as_json, f"signing key in {path}\n{found}")


@app.command()
def fingerprint(
    path: Annotated[Path, typer.Argument(help="Signing key, public or private, or a certificate.")],
    as_json: JsonOption = False,
) -> None:
    """Print the fingerprint of a key or certificate: what people compare, on another channel, before they trust it."""
    pem = read(path, "key or certificate")
    if b"-----BEGIN CERTIFICATE-----" in pem:
        certificate = parse_certificate(pem, str(path))
        facts: dict[str, Any] = {
            "kind": "certificate",
            "fingerprint": certificate.fingerprint,
            "identity": certificate.spiffe,
            "serial": f"{certificate.serial:x}",
            "expires_at": certificate.expires_at,
        }
    else:
        facts = {"kind": "signing key", "fingerprint": fingerprint_of_file(path)}
    _print(facts, as_json, str(facts["fingerprint"]))


@app.command()
def revoke(
    certificate: Annotated[str, typer.Argument(help="Certificate file, or its serial number in hexadecimal.")],
    revoked: Annotated[Path, typer.Option("--list", help="Revocation list the director reads.")] = Path("revoked.txt"),
    as_json: JsonOption = False,
) -> None:
    """Revoke a certificate before it expires. A director that follows the list ends its open streams too."""
    path = Path(certificate)
    if path.is_file():
        serial = parse_certificate(read(path, "certificate"), certificate).serial
    else:
        try:
            serial = parse_serial(certificate)
        except ConfigurationError as error:
            raise ConfigurationError(f"there is no certificate file {certificate!r}, and {error}") from error
    is_new = revoke_serial(revoked, serial)
    facts = {"serial": f"{serial:x}", "list": str(revoked), "changed": is_new}
    _print(facts, as_json, f"serial {serial:x} is {'now' if is_new else 'already'} in {revoked}")


@app.command()
def pin(
    whose: Annotated[Pinned, typer.Argument(help="Whether a user's or a site's key.")],
    name: Annotated[str, typer.Argument(help="The user or site.")],
    key: Annotated[str, typer.Argument(help="Fingerprint, sha256:…, or a file with the public key.")],
    known: Annotated[Path, typer.Option(help="File of pinned keys.")] = Path("known.toml"),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pin a signing key at this silo, after comparing its fingerprint with its owner on another channel."""
    value = key if key.startswith("sha256:") else fingerprint_of_file(Path(key))
    kind: Kind = "users" if whose is Pinned.user else "sites"
    pin_key(known, kind, name, value, force=force)
    facts = {"kind": kind, "name": name, "fingerprint": value, "known": str(known)}
    _print(facts, as_json, f"{whose.value} {name} is pinned to {value} in {known}")


async def _enrol(text: str, director: str, out: Path, *, force: bool) -> Identity:
    # gRPC loads only for the one command that connects
    from federation.transport.channels import open_channel
    from federation.transport.credentials import TlsFiles
    from federation.transport.methods import Stub
    from federation.v1 import director_pb2 as pb

    key = make_key()
    with tempfile.TemporaryDirectory(prefix="join-") as temporary:  # mode 0700; gone with the token's key
        folder = Path(temporary) / "token"
        joiner = unpack_join_token(text, folder)
        authority = (folder / "ca.pem").read_bytes()
        name = director_server_name(joiner.federation)
        async with open_channel(director, server_name=name, tls=TlsFiles.in_folder(folder)) as channel:
            stub = Stub(channel, pb.DESCRIPTOR.services_by_name["Director"])
            reply: pb.EnrolReply = await stub.unary("Enrol", pb.EnrolRequest(signing_request=make_request(key)))
    envoy = Identity(federation=joiner.federation, role=Role.ENVOY, name=joiner.name)
    try:
        certificate = parse_certificate(reply.certificate, "the director's reply")
    except ConfigurationError as error:
        raise PeerError(str(error)) from error
    if certificate.spiffe != envoy.spiffe or certificate.public_key != key.public_key():
        raise PeerError(f"the director certified {certificate.spiffe} or another key, expected ours for {envoy}")
    # The authority in the token is the one we were handed by a person; the director's word does not replace it.
    write_identity(out, key_pem(key), reply.certificate, authority, force=force)
    return envoy


async def _renew(profile: Profile) -> Certificate:
    # gRPC loads only for the commands that connect
    from federation.transport.channels import open_channel
    from federation.transport.methods import Stub
    from federation.v1 import director_pb2 as pb

    tls = profile.tls
    if tls is None:
        raise ConfigurationError("there is no certificate to renew: the profile has `insecure_user`")
    complete(tls)  # a renewal that was cut off
    tls.check(now=time.time())
    async with open_channel(profile.address, server_name=profile.server_name, tls=tls) as channel:
        stub = Stub(channel, pb.DESCRIPTOR.services_by_name["Director"], timeout_s=profile.timeout_s)

        async def ask(signing_request: bytes) -> bytes:
            reply = await stub.unary("Renew", pb.RenewRequest(signing_request=signing_request))
            answer: bytes = reply.certificate
            return answer

        return await renew_files(tls, ask, now=time.time)


def _print(facts: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(facts) if as_json else text)
