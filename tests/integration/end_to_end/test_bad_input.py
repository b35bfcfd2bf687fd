"""What a director and its envoys are told that is not so: refused over the real wire, with a reason, and no harm done.

Other tests have the rest: `test_identity` (plaintext, foreign and expired certificates), `test_aggregator_updates`
(bad updates), `site/test_hostile_experiment` (experiment code against the sandbox).
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from federation.bundle.manifest import Manifest
from federation.bundle.packing import file_digest
from federation.bundle.signing import SignedManifest, sign_manifest
from federation.client.submission import packaged
from federation.errors import IdentityError, MalformedMessageError, NotFoundError
from federation.names import Identity, Role, UserName, director_server_name
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.keys import make_key
from federation.pki.signing import load_signing_key
from federation.transport.channels import open_channel
from federation.transport.credentials import TlsFiles
from federation.transport.methods import Stub
from federation.v1 import director_pb2 as pb
from federation.v1 import tensors_pb2
from federation.wire.versions import range_to_proto

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIRECTOR = pb.DESCRIPTOR.services_by_name["Director"]
BY_EXPERIMENT = {
    "GetExperiment": pb.GetExperimentRequest,
    "WatchExperiment": pb.WatchExperimentRequest,
    "CancelExperiment": pb.CancelExperimentRequest,
    "ReadLogs": pb.ReadLogsRequest,
    "DownloadArtifact": pb.DownloadArtifactRequest,
    "FetchBundle": pb.FetchBundleRequest,
}
SLASHES = ("../../director", "a/b", "/etc/passwd", "..", "", "a\0b", "x" * 5000)


@pytest.fixture(scope="module")
def trial(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    sites = {"north": ("rows", "alone"), "south": ("rows",)}
    with start(tmp_path_factory.mktemp("bad"), sites) as running:
        yield running


@pytest.fixture(scope="module")
def finished(trial: Any) -> Any:
    """An experiment of north alone that is over."""
    run = trial.submit(shard="alone", plan={"sites": 1, "minimum_sites": 1, "rounds": 1})
    run.complete()
    return run


class Caller:
    """Somebody with a certificate of the federation."""

    def __init__(self, trial: Any, role: Role, name: str) -> None:
        self._trial = trial
        identity = Identity(federation=trial.local.name, role=role, name=name)
        folder = trial.folder / "callers" / f"{role.value}-{name}"
        authority = CertificateAuthority.load(trial.folder / "ca")
        issue_identity(authority, identity, folder, now=time.time(), force=True)
        self._tls = TlsFiles.in_folder(folder)

    async def call(self, method: str, request: Any) -> list[Any]:
        """Call a method of any kind with one request; return its replies."""
        name = director_server_name(self._trial.local.name)
        async with open_channel(self._trial.local.address, server_name=name, tls=self._tls) as channel:
            stub = Stub(channel, DIRECTOR)
            descriptor = DIRECTOR.methods_by_name[method]
            if descriptor.client_streaming and descriptor.server_streaming:
                async with stub.bidi(method) as session:
                    await session.write(request)
                    return [await session.read()]
            if descriptor.client_streaming:
                return [await stub.client_stream(method, [request])]
            if descriptor.server_streaming:
                async with stub.server_stream(method, request) as replies:
                    return [reply async for reply in replies]
            return [await stub.unary(method, request)]


def caller_of(trial: Any, method: str) -> Caller:
    return Caller(trial, Role.ENVOY, "north") if method == "FetchBundle" else Caller(trial, Role.USER, "researcher")


# Who asks for what


@pytest.mark.parametrize("method", BY_EXPERIMENT)
async def test_an_unknown_experiment_is_not_found(trial: Any, method: str) -> None:
    with pytest.raises(NotFoundError, match="nobody-1"):
        await caller_of(trial, method).call(method, BY_EXPERIMENT[method](experiment="nobody-1"))


@pytest.mark.parametrize("method", BY_EXPERIMENT)
async def test_a_name_that_could_be_a_path_is_refused(trial: Any, method: str) -> None:
    for name in SLASHES:
        with pytest.raises((NotFoundError, MalformedMessageError, IdentityError)) as caught:
            await caller_of(trial, method).call(method, BY_EXPERIMENT[method](experiment=name))
        assert len(str(caught.value)) < 500


async def test_artifact_and_site_names_that_could_be_paths_are_refused(trial: Any, finished: Any) -> None:
    user = Caller(trial, Role.USER, "researcher")
    for name in (*SLASHES, "bundle.zip", "../director.db", "../../director.toml"):
        with pytest.raises((NotFoundError, MalformedMessageError, IdentityError)):
            await user.call("DownloadArtifact", pb.DownloadArtifactRequest(experiment=finished.id, name=name))
    for name in filter(None, SLASHES):
        with pytest.raises((NotFoundError, MalformedMessageError)):
            await user.call("ReadLogs", pb.ReadLogsRequest(experiment=finished.id, site=name))


async def test_a_project_name_that_could_be_a_path_finds_nothing(trial: Any, finished: Any) -> None:
    user = Caller(trial, Role.USER, "researcher")
    assert (await user.call("ListExperiments", pb.ListExperimentsRequest()))[0].experiments
    for name in filter(None, SLASHES):
        with contextlib.suppress(MalformedMessageError):
            assert not (await user.call("ListExperiments", pb.ListExperimentsRequest(project=name)))[0].experiments


@pytest.mark.parametrize(
    ("role", "method", "request_"),
    [
        (Role.USER, "Attend", pb.AttendRequest()),
        (Role.USER, "Supervise", pb.SuperviseRequest()),
        (Role.USER, "FetchBundle", pb.FetchBundleRequest()),
        (Role.USER, "UploadArtifact", pb.UploadArtifactRequest()),
        (Role.USER, "Enrol", pb.EnrolRequest()),
        (Role.ENVOY, "Submit", pb.SubmitRequest()),
        (Role.ENVOY, "Supervise", pb.SuperviseRequest()),
        (Role.ENVOY, "CancelExperiment", pb.CancelExperimentRequest()),
        (Role.ENVOY, "DownloadArtifact", pb.DownloadArtifactRequest()),
        (Role.AGGREGATOR, "Submit", pb.SubmitRequest()),
        (Role.AGGREGATOR, "Attend", pb.AttendRequest()),
        (Role.AGGREGATOR, "GetExperiment", pb.GetExperimentRequest()),
    ],
    ids=lambda value: getattr(value, "value", value if isinstance(value, str) else ""),
)
async def test_the_wrong_role_is_refused(trial: Any, role: Role, method: str, request_: Any) -> None:
    with pytest.raises(IdentityError, match=method):
        await Caller(trial, role, "somebody").call(method, request_)


async def test_another_user_does_not_learn_that_an_experiment_exists(trial: Any, finished: Any) -> None:
    stranger = Caller(trial, Role.USER, "stranger")
    for method in ("GetExperiment", "WatchExperiment", "CancelExperiment", "ReadLogs", "DownloadArtifact"):
        with pytest.raises(NotFoundError):
            await stranger.call(method, BY_EXPERIMENT[method](experiment=finished.id))
    assert not (await stranger.call("ListExperiments", pb.ListExperimentsRequest()))[0].experiments


async def test_an_envoy_does_not_get_the_bundle_of_an_experiment_it_was_not_asked_to_join(
    trial: Any, finished: Any
) -> None:
    with pytest.raises((NotFoundError, IdentityError)):
        await Caller(trial, Role.ENVOY, "south").call("FetchBundle", pb.FetchBundleRequest(experiment=finished.id))


async def test_an_aggregator_cannot_speak_for_another_experiment(trial: Any, finished: Any) -> None:
    hello = pb.AggregatorHello(protocol=range_to_proto(), experiment=finished.id, epoch=9)
    with pytest.raises(IdentityError, match="cannot speak for"):
        await Caller(trial, Role.AGGREGATOR, "other-1").call("Supervise", pb.SuperviseRequest(hello=hello))


# Bundles that are not what was signed: a dishonest director, seen by the envoys


def stored_bundle(trial: Any, run: Any) -> Path:
    path: Path = trial.folder / "director" / "state" / "artifacts" / run.id / "bundle.zip"
    return path


def change_a_file(trial: Any, run: Any) -> None:
    """Another experiment.py of the same length."""
    path = stored_bundle(trial, run)
    data = path.read_bytes()
    assert b"Least squares" in data
    path.write_bytes(data.replace(b"Least squares", b"Steal patient"))


def set_signature(trial: Any, run: Any, signature: bytes, key: bytes | None = None) -> None:
    with sqlite3.connect(trial.folder / "director" / "state" / "director.db", timeout=30) as database:
        found = database.execute("UPDATE experiments SET signature = ? WHERE id = ?", (signature, run.id))
        assert found.rowcount == 1
        if key is not None:
            database.execute("UPDATE experiments SET signing_key = ? WHERE id = ?", (key, run.id))
    database.close()


def sign_as_a_stranger(trial: Any, run: Any) -> None:
    with sqlite3.connect(trial.folder / "director" / "state" / "director.db", timeout=30) as database:
        (manifest,) = database.execute("SELECT manifest FROM experiments WHERE id = ?", (run.id,)).fetchone()
    database.close()
    signed = sign_manifest(Manifest.parse(manifest), make_key())
    set_signature(trial, run, signed.signature, signed.signing_key)


def remove_the_signature(trial: Any, run: Any) -> None:
    set_signature(trial, run, b"")


def lengthen(trial: Any, run: Any) -> None:
    with stored_bundle(trial, run).open("ab") as file:
        file.write(b"more")


TAMPERING = {
    change_a_file: "SHA-256",
    sign_as_a_stranger: "this site has pinned",
    remove_the_signature: "is not signed",
    lengthen: "bundle",
}


def test_a_bundle_that_was_tampered_with_at_the_director_is_refused_with_the_reason(trial: Any) -> None:
    """All wait for south; then each is tampered with, and south comes back."""
    trial.local.stop("envoy-south")
    try:
        runs = {tamper: trial.submit() for tamper in TAMPERING}
        for tamper, run in runs.items():
            run.until(lambda event: event.kind == "assignment" and "waits for sites" in event.text)
            tamper(trial, run)
    finally:
        trial.local.start_envoy("south")
    for tamper, run in runs.items():
        details = run.end()
        assert details.summary.state == "failed", (tamper.__name__, run.story)
        answers = {entry.site: entry for entry in details.sites}
        for site in ("north", "south"):
            assert answers[site].answer == "refused", (tamper.__name__, run.story)
            assert TAMPERING[tamper] in answers[site].reason, (tamper.__name__, answers[site].reason)
            assert answers[site].reason in details.summary.reason
        assert run.gate.count("train north 1") == 0


async def test_an_archive_with_a_path_out_of_its_folder_is_not_unpacked(trial: Any, tmp_path: Path) -> None:
    """The user himself signs it, so only unpacking can tell."""
    source = trial.submit().source  # any folder that is ready
    local = trial.local
    with packaged(source, local.profile, submitter=UserName("researcher"), now=time.time()) as package:
        with zipfile.ZipFile(package.archive, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr("../evil.py", "print('here')")
        manifest = dataclasses.replace(
            package.manifest,
            bundle_digest=file_digest(package.archive),
            bundle_bytes=package.archive.stat().st_size,
        )
        signed = sign_manifest(manifest, load_signing_key(local.profile.signing_key))
        experiment = await submit(trial, signed, package.archive.read_bytes(), package.model.read_bytes())
    for _event in trial.client.watch(experiment):
        pass
    details = trial.client.show(experiment)
    assert details.summary.state == "failed"
    assert {entry.answer for entry in details.sites} == {"refused"}
    assert all("evil.py" in entry.reason for entry in details.sites), details.sites
    assert not list(trial.folder.rglob("evil.py"))


async def submit(trial: Any, signed: SignedManifest, bundle: bytes, model: bytes) -> str:
    header = pb.SubmitHeader(
        protocol=range_to_proto(),
        manifest=signed.manifest,
        signature=signed.signature,
        signing_key=signed.signing_key,
        bundle_bytes=len(bundle),
        model_bytes=len(model),
    )
    requests = [
        pb.SubmitRequest(header=header),
        pb.SubmitRequest(bundle=tensors_pb2.Chunk(offset=0, data=bundle)),
        pb.SubmitRequest(model=tensors_pb2.Chunk(offset=0, data=model)),
    ]
    name = director_server_name(trial.local.name)
    async with open_channel(trial.local.address, server_name=name, tls=trial.local.profile.tls) as channel:
        reply = await Stub(channel, DIRECTOR).client_stream("Submit", requests)
    return str(reply.experiment)


# Settings


def run_director(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "director", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def another_config(trial: Any, folder: Path, *changes: tuple[str, str]) -> Path:
    """Return the director's settings with changes, for a state folder of its own."""
    original = trial.folder / "director" / "director.toml"
    text = original.read_text().replace('"state" = "state"', f'"state" = "{folder / "state"}"')
    text = text.replace('"../ca"', f'"{trial.folder / "ca"}"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (folder / name).write_bytes((original.parent / name).read_bytes())
        (folder / name).chmod(0o600)
    config = folder / "director.toml"
    config.write_text(text)
    return config


def test_a_port_in_use_is_named(trial: Any, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = run_director(another_config(trial, tmp_path, ('"port" = 0\n["tls"]', f'"port" = {port}\n["tls"]')))
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr and "another process uses this port" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_typo_in_the_settings_names_the_nearest_key(trial: Any, tmp_path: Path) -> None:
    done = run_director(another_config(trial, tmp_path, ('"listen"', '"lisen"')))
    assert done.returncode == 2
    assert "lisen" in done.stderr and "listen" in done.stderr.replace("lisen", "")
    assert "director.toml" in done.stderr and "Traceback" not in done.stderr
