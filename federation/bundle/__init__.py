"""Experiment bundles: a folder of code that travels signed and is opened only where its user is trusted.

At home: `pack` makes the archive, a `Manifest` says what is in it and what it is for, `sign_manifest` signs exactly the
manifest's bytes. At a silo, in this order: `verify` (signature, federation, expiry, pinned key), `NonceLedger.accept`
(once), `unpack` (archive and every file against the manifest, into a fresh folder). Nothing is unpacked before all of
the manifest is believed.
"""

from federation.bundle.manifest import FileEntry, Manifest, new_nonce, payload_digest
from federation.bundle.nonces import NonceLedger
from federation.bundle.packing import Limits, Packed, file_digest, pack, unpack
from federation.bundle.signing import (
    MAX_VALID_FOR_S,
    SignedManifest,
    UnpinnedError,
    VerifiedManifest,
    fingerprint_of,
    open_manifest,
    sign_manifest,
    verify,
)

__all__ = [
    "MAX_VALID_FOR_S",
    "FileEntry",
    "Limits",
    "Manifest",
    "NonceLedger",
    "Packed",
    "SignedManifest",
    "UnpinnedError",
    "VerifiedManifest",
    "file_digest",
    "fingerprint_of",
    "new_nonce",
    "open_manifest",
    "pack",
    "payload_digest",
    "sign_manifest",
    "unpack",
    "verify",
]
