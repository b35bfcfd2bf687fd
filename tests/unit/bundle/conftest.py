"""A small experiment, packed and described, for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from federation.bundle import Manifest, Packed, pack
from federation.names import Digest, FederationName, UserName
from federation.plan import ExperimentSpec, Plan, TensorRow
from federation.tensors import DType, TensorRole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_700_000_000.0
FEDERATION = FederationName("hospitals")


@dataclass(frozen=True)
class Source:
    """An experiment folder and its archive."""

    folder: Path
    archive: Path
    packed: Packed


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = tmp_path / "source"
    (folder / "parts").mkdir(parents=True)
    (folder / "experiment.py").write_text("experiment = 1\n")
    (folder / "parts" / "network.py").write_text("layers = 3\n")
    archive = tmp_path / "bundle.zip"
    return Source(folder, archive, pack(folder, archive))


def spec() -> ExperimentSpec:
    row = TensorRow(name="w", dtype=DType.FLOAT32, shape=(2,), role=TensorRole.PARAMETER)
    return ExperimentSpec(name="trial", shard="patients", plan=Plan(), tensors=(row,))


@pytest.fixture
def describe() -> Callable[..., Manifest]:
    """A function from what packing gave to a manifest; keywords replace fields."""

    def make(packed: Packed, **changes: object) -> Manifest:
        fields: dict[str, object] = {
            "federation": FEDERATION,
            "submitter": UserName("alice"),
            "spec": spec(),
            "files": packed.files,
            "bundle_digest": packed.digest,
            "bundle_bytes": packed.nbytes,
            "model_digest": Digest(b"\x01" * 32),
            "model_bytes": 8,
            "model_payload_digest": Digest(b"\x02" * 32),
            "base_payload_digest": Digest(b"\x03" * 32),
            "nonce": "0123456789abcdef" * 2,
            "not_after": NOW + 60,
        }
        return Manifest(**{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
