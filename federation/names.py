"""Names, ids and identities: what may be called what, decided once.

Rules, in order:

1. Every name that reaches a path, a label or a certificate matches one DNS label (lower-case letters, digits and
   hyphens, at most 63 characters), so no path or label is ever built from raw input.
2. Ids are distinct types: two strings that mean different things cannot be swapped unnoticed.
3. A peer is an `Identity`, written ``spiffe://<federation>/<role>/<name>`` in its certificate and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from federation.errors import IdentityError, InvalidNameError

FederationName = NewType("FederationName", str)
SiteName = NewType("SiteName", str)
UserName = NewType("UserName", str)
ExperimentId = NewType("ExperimentId", str)
ShardName = NewType("ShardName", str)
PayloadName = NewType("PayloadName", str)
RoundNumber = NewType("RoundNumber", int)
"""Rounds count from 1; 0 means before the first."""
Epoch = NewType("Epoch", int)
"""Grant of an experiment to one aggregator process; a higher one supersedes a lower one."""
Attempt = NewType("Attempt", int)
"""A site's try at one round, from 1."""
Digest = NewType("Digest", bytes)
"""32 bytes: of a payload its BLAKE3 hash (`federation.tensors.digest`), of anything else SHA-256."""

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_EXPERIMENT_SUFFIX_LENGTH = 8


class Role(Enum):
    """What a certificate lets its holder be."""

    DIRECTOR = "director"
    AGGREGATOR = "aggregator"
    ENVOY = "envoy"
    USER = "user"
    OPERATOR = "operator"
    JOINER = "joiner"


class ExperimentState(Enum):
    """Where an experiment is; `director.lifecycle` holds the transitions."""

    SUBMITTED = "submitted"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """True once nothing can change any more."""
        return self in (ExperimentState.COMPLETED, ExperimentState.FAILED, ExperimentState.CANCELLED)


def check_name(text: str, what: str) -> str:
    """Return `text` if it is a valid name.

    Args:
        text: candidate name.
        what: what it names, for the error, such as ``"site name"``.

    Raises:
        InvalidNameError: `text` is not one lower-case DNS label.
    """
    if not NAME_PATTERN.fullmatch(text):
        shown = text if len(text) <= 80 else text[:80] + "…"
        raise InvalidNameError(
            f"{what} {shown!r} is not valid: use 1 to 63 lower-case letters, digits and hyphens, "
            "beginning and ending with a letter or digit"
        )
    return text


def experiment_id(name: str, suffix: str) -> ExperimentId:
    """Return the id of an experiment called `name`: the name, shortened if need be, and a unique suffix.

    Args:
        name: valid name its author chose.
        suffix: 8 random lower-case letters or digits, made by the caller.

    Raises:
        InvalidNameError: name or suffix is not valid.
    """
    check_name(name, "experiment name")
    if len(suffix) != _EXPERIMENT_SUFFIX_LENGTH:
        raise ValueError(f"suffix must have {_EXPERIMENT_SUFFIX_LENGTH} characters, got {len(suffix)}")
    stem = name[: 63 - 1 - _EXPERIMENT_SUFFIX_LENGTH].rstrip("-")
    return ExperimentId(check_name(f"{stem}-{suffix}", "experiment id"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a peer is, as its certificate says.

    Attributes:
        federation: federation the certificate belongs to.
        role: what the holder may be.
        name: site, user, operator or experiment name; the director's own name for role director.
    """

    federation: FederationName
    role: Role
    name: str

    @property
    def spiffe(self) -> str:
        """The one URI of the certificate's subject alternative names."""
        return f"spiffe://{self.federation}/{self.role.value}/{self.name}"

    def __str__(self) -> str:
        return self.spiffe

    @classmethod
    def parse(cls, spiffe: str) -> Identity:
        """Read an identity back from its SPIFFE id.

        Raises:
            IdentityError: it is not of the form ``spiffe://<federation>/<role>/<name>`` with valid names.
        """
        parts = spiffe.split("/")
        if len(parts) != 5 or parts[0] != "spiffe:" or parts[1]:
            raise IdentityError(f"{spiffe[:200]!r} is not a SPIFFE id of the form spiffe://<federation>/<role>/<name>")
        federation, role, name = parts[2:]
        try:
            check_name(federation, "federation name")
            check_name(name, "name")
            return cls(federation=FederationName(federation), role=Role(role), name=name)
        except (InvalidNameError, ValueError) as error:
            raise IdentityError(f"SPIFFE id {spiffe[:200]!r} is not valid: {error}") from error


def director_server_name(federation: FederationName) -> str:
    """Return the DNS name in the director's certificate, which every channel to it expects."""
    return f"director.{federation}.internal"


def aggregator_server_name(federation: FederationName, experiment: ExperimentId) -> str:
    """Return the DNS name in the certificate of the experiment's aggregator."""
    return f"{experiment}.aggregator.{federation}.internal"
