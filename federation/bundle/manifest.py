"""The manifest: what a bundle holds, for which federation, until when, and who says so.

Rules, in order:

1. What is signed is the manifest's bytes: canonical JSON (sorted keys, no spaces, ASCII). `Manifest.parse` refuses any
   other spelling, so equal manifests have equal bytes and a key given twice has no meaning to argue about.
2. It binds everything that decides what will happen: the experiment (plan, schema), each file of the archive, the
   archive, the initial model, the federation, the submitter, a nonce and an expiry.
3. Parsing checks form and limits only. Whether to believe it is `federation.bundle.signing`'s business.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.bundle.paths import check_paths
from federation.errors import BundleError, FederationError
from federation.names import Digest, FederationName, UserName, check_name
from federation.plan import ExperimentSpec
from federation.tensors import TensorSchema, pack
from federation.tensors.digest import PayloadHash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.tensors.buffers import Array

MAX_MANIFEST_BYTES = 1024 * 1024
"""What `SubmitHeader.manifest` may hold."""
FORMAT = "federation-bundle-1"
NONCE_BYTES = 16
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a bundle: `path` (relative, with slashes), `size` in bytes, `sha256` of its content in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a user signs.

    Attributes:
        federation: the only federation in which the bundle may run.
        submitter: user who signs.
        spec: the experiment as data; director, aggregator and envoy act on this and never open the archive.
        files: every file of the archive, sorted by path.
        bundle_digest: SHA-256 of the archive.
        bundle_bytes: size of the archive, bytes.
        model_digest: SHA-256 of the initial model, a safetensors file.
        model_bytes: size of the initial model file, bytes.
        model_payload_digest: BLAKE3 of the flat buffer of the initial federated tensors: what a site is sent as
            payload ``model`` in round 1, so that it can tell that it starts from what was signed.
        base_payload_digest: the same of the local tensors, payload ``base``; of no bytes if there are none.
        nonce: 16 random bytes in hex; a silo accepts each once.
        not_after: Unix time after which no silo accepts the bundle, seconds; none accepts one that is further away than
            `federation.bundle.signing.MAX_VALID_FOR_S`.
        spec_json: the spec as it was signed, byte for byte; left out at home, where it is `spec`'s canonical JSON. A
            newer release knows more fields, so writing `spec` anew need not give what was signed.
    """

    federation: FederationName
    submitter: UserName
    spec: ExperimentSpec
    files: tuple[FileEntry, ...]
    bundle_digest: Digest
    bundle_bytes: int
    model_digest: Digest
    model_bytes: int
    model_payload_digest: Digest
    base_payload_digest: Digest
    nonce: str
    not_after: float
    spec_json: bytes = b""

    def __post_init__(self) -> None:
        if not self.spec_json:
            object.__setattr__(self, "spec_json", self.spec.canonical_json())

    def to_bytes(self) -> bytes:
        """Return the canonical JSON, which is what is signed and sent."""
        return _canonical(
            {
                "format": FORMAT,
                "federation": self.federation,
                "submitter": self.submitter,
                "spec": json.loads(self.spec_json),
                "files": [{"path": entry.path, "size": entry.size, "sha256": entry.sha256} for entry in self.files],
                "bundle": {"sha256": self.bundle_digest.hex(), "size": self.bundle_bytes},
                "model": {"sha256": self.model_digest.hex(), "size": self.model_bytes},
                "model_payload": self.model_payload_digest.hex(),
                "base_payload": self.base_payload_digest.hex(),
                "nonce": self.nonce,
                "not_after": self.not_after,
            }
        )

    @property
    def digest(self) -> Digest:
        """SHA-256 of the signed bytes."""
        return Digest(hashlib.sha256(self.to_bytes()).digest())

    @property
    def spec_digest(self) -> Digest:
        """SHA-256 of the spec as it was signed: what peers call the experiment's plan by."""
        return Digest(hashlib.sha256(self.spec_json).digest())

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Read a manifest, believing nothing yet.

        Raises:
            BundleError: too long, not canonical JSON, of another format, or a field is missing, unknown or out of
                range.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"the manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are allowed")
        try:
            return _read(_load(data))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, FederationError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"the manifest is not valid: {type(error).__name__}: {str(error)[:500]}") from error


def new_nonce() -> str:
    """Return a fresh nonce."""
    return secrets.token_hex(NONCE_BYTES)


def payload_digest(schema: TensorSchema, arrays: Mapping[str, Array]) -> Digest:
    """Return the digest of the flat buffer of a schema, without making the buffer.

    Raises:
        ValueError: a tensor is missing, or has another dtype or shape than its spec.
    """
    digest = PayloadHash()
    for spec in schema:
        digest.update(pack(TensorSchema((spec,)), arrays))
    return digest.digest()


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _load(data: bytes) -> dict[str, Any]:
    document = json.loads(data)
    if not isinstance(document, dict) or _canonical(document) != data:
        raise BundleError("the manifest is not canonical JSON (sorted keys, no spaces, ASCII, no key twice)")
    if document.get("format") != FORMAT:
        raise BundleError(f"the manifest has format {str(document.get('format'))[:40]!r}, expected {FORMAT!r}")
    return document


def _read(document: dict[str, Any]) -> Manifest:
    document = dict(document)
    document.pop("format")
    bundle, model = document.pop("bundle"), document.pop("model")
    spec_json = _canonical(document.pop("spec"))  # a part of canonical JSON, written canonically, is the same bytes
    manifest = Manifest(
        federation=FederationName(check_name(document.pop("federation"), "federation name")),
        submitter=UserName(check_name(document.pop("submitter"), "user name")),
        spec=ExperimentSpec.parse(spec_json),
        files=_read_files(document.pop("files")),
        bundle_digest=_digest(bundle.pop("sha256")),
        bundle_bytes=_size(bundle.pop("size")),
        model_digest=_digest(model.pop("sha256")),
        model_bytes=_size(model.pop("size")),
        model_payload_digest=_digest(document.pop("model_payload")),
        base_payload_digest=_digest(document.pop("base_payload")),
        nonce=bytes.fromhex(_text(document["nonce"], NONCE_BYTES * 2)).hex(),
        not_after=_time(document.pop("not_after")),
        spec_json=spec_json,
    )
    if manifest.nonce != document.pop("nonce"):
        raise BundleError("the nonce must be lower-case hex")
    if document or bundle or model:
        raise BundleError(f"the manifest has unknown fields: {sorted(document | bundle | model)[:5]}")
    return manifest


def _read_files(rows: list[dict[str, Any]]) -> tuple[FileEntry, ...]:
    entries = []
    for row in rows:
        if set(row) != {"path", "size", "sha256"}:
            raise BundleError("each file of the manifest has exactly path, size and sha256")
        entries.append(FileEntry(path=row["path"], size=_size(row["size"]), sha256=_digest(row["sha256"]).hex()))
    check_paths([entry.path for entry in entries])
    if [entry.path for entry in entries] != sorted(entry.path for entry in entries):
        raise BundleError("the files of the manifest are not sorted by path")
    return tuple(entries)


def _text(value: object, length: int) -> str:
    if not isinstance(value, str) or len(value) != length:
        raise BundleError(f"expected {length} hex digits, got {str(value)[:80]!r}")
    return value


def _digest(value: object) -> Digest:
    return Digest(bytes.fromhex(_text(value, _DIGEST_BYTES * 2)))


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise BundleError(f"expected a size in bytes, got {str(value)[:80]!r}")
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BundleError(f"expected a Unix time in seconds, got {str(value)[:80]!r}")
    return float(value)
