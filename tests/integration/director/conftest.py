"""A real director over mutual TLS, and what is submitted to it."""

from __future__ import annotations

import hashlib
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from director.config import DirectorSettings
from director.daemon import serving
from federation.bundle.manifest import Manifest, new_nonce
from federation.bundle.signing import sign_manifest
from federation.names import Digest, Role, UserName
from federation.pki.authority import CertificateAuthority
from federation.pki.keys import make_key
from federation.plan import ExperimentSpec, Plan, tensor_rows
from federation.storage.safetensors_files import write_model
from federation.tensors import DType, TensorSchema, TensorSpec
from federation.tensors.digest import payload_digest
from federation.v1 import director_pb2 as pb
from federation.wire.chunks import read_chunks
from federation.wire.versions import range_to_proto

from .scripted import FEDERATION, Aggregator, Pki, ScriptedLauncher, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    authority = CertificateAuthority.create(FEDERATION, tmp_path / "ca", now=time.time())
    return Pki(tmp_path / "identities", authority)


@pytest.fixture
def launcher() -> ScriptedLauncher:
    return ScriptedLauncher()


@pytest.fixture
def settings(tmp_path: Path, pki: Pki) -> DirectorSettings:
    tls = pki.issue(Role.DIRECTOR, "director")
    return DirectorSettings(
        federation=FEDERATION,
        state=tmp_path / "state",
        listen={"port": 0},
        tls={
            "authority": tls.authority,
            "certificate": tls.certificate,
            "key": tls.key,
            "ca": tmp_path / "ca",
            "revoked": tmp_path / "revoked.txt",
        },
        times={"restart_s": 0.01, "end_s": 1.0, "drain_s": 2.0},
        aggregators={"max_restarts": 2},
    )


@pytest.fixture
def make_aggregator() -> type[Aggregator]:
    """The class itself, for tests that dial a director of another process."""
    return Aggregator


@asynccontextmanager
async def running(settings: DirectorSettings, pki: Pki, launcher: ScriptedLauncher) -> AsyncIterator[World]:
    async with serving(settings, launcher=launcher) as director:
        world = World(director, settings, pki, launcher)
        try:
            yield world
        finally:
            await world.close()


@pytest.fixture
async def world(settings: DirectorSettings, pki: Pki, launcher: ScriptedLauncher) -> AsyncIterator[World]:
    async with running(settings, pki, launcher) as made:
        yield made


@pytest.fixture
def run_director() -> Any:
    """The context manager itself, for tests that start a director more than once."""
    return running


def shard(name: str = "main", kind: str = "tabular", **fields: Any) -> pb.ShardOffer:
    fields = {"train_examples": 10, "validation_examples": 2, "sample_shape": [3], **fields}
    return pb.ShardOffer(name=name, kind=kind, **fields)


@pytest.fixture
def make_shard() -> Callable[..., pb.ShardOffer]:
    return shard


@dataclass
class Package:
    """A signed submission; tests change it before it is sent."""

    header: pb.SubmitHeader
    bundle: bytes
    model: bytes

    async def requests(self) -> AsyncIterator[pb.SubmitRequest]:
        yield pb.SubmitRequest(header=self.header)
        for kind, data in (("bundle", self.bundle), ("model", self.model)):
            for chunk in read_chunks(lambda offset, size, data=data: data[offset : offset + size], len(data)):
                yield pb.SubmitRequest(**{kind: chunk})

    async def submit(self, world: World, user: str = "alice") -> str:
        reply = await world.stub(Role.USER, user).client_stream("Submit", self.requests())
        return str(reply.experiment)


SCHEMA = TensorSchema.of([TensorSpec(name="weight", dtype=DType.FLOAT32, shape=(3,))])


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[..., Package]:
    def make(name: str = "trial", *, user: str = "alice", sites: int = 1, **changes: Any) -> Package:
        path = tmp_path / "model.safetensors"
        write_model(path, SCHEMA, {"weight": np.zeros(3, np.float32)})
        model, bundle = path.read_bytes(), b"PK not opened by anybody here" * 1000
        plan = Plan(rounds=2, minimum_sites=sites, **changes.pop("plan", {}))
        spec = ExperimentSpec(name=name, shard="tabular", plan=plan, tensors=tensor_rows(SCHEMA))
        fields: dict[str, Any] = {
            "federation": FEDERATION,
            "submitter": UserName(user),
            "spec": spec,
            "files": (),
            "bundle_digest": Digest(hashlib.sha256(bundle).digest()),
            "bundle_bytes": len(bundle),
            "model_digest": Digest(hashlib.sha256(model).digest()),
            "model_bytes": len(model),
            "model_payload_digest": payload_digest(bytes(12)),
            "base_payload_digest": payload_digest(b""),
            "nonce": new_nonce(),
            "not_after": time.time() + 3600,
            **changes,
        }
        signed = sign_manifest(Manifest(**fields), make_key())
        header = pb.SubmitHeader(
            protocol=range_to_proto(),
            manifest=signed.manifest,
            signature=signed.signature,
            signing_key=signed.signing_key,
            bundle_bytes=fields["bundle_bytes"],
            model_bytes=fields["model_bytes"],
        )
        return Package(header, bundle, model)

    return make


@pytest.fixture
def config(tmp_path: Path, settings: Any, pki: Any) -> Path:
    """Return the configuration file of a director process."""
    tls = settings.tls
    path = tmp_path / "director.toml"
    path.write_text(
        f"""
        federation = "test"
        state = "state"
        [listen]
        port = 0
        [tls]
        authority = "{tls.authority}"
        certificate = "{tls.certificate}"
        key = "{tls.key}"
        ca = "{tls.ca}"
        [times]
        restart_s = 0.05
        """
    )
    return path
