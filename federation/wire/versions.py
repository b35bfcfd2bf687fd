"""Which protocol a session speaks: each side says its range first, the highest common version wins."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as installed_version

from federation.errors import MalformedMessageError, PeerError
from federation.v1 import tensors_pb2

MAX_SOFTWARE_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRange:
    """Versions a peer can speak, both inclusive; `software` is its release, for logs only."""

    lowest: int
    highest: int
    software: str = ""


PROTOCOL = ProtocolRange(lowest=3, highest=3, software=installed_version("federation"))
"""What this release speaks. Its number comes from the installed package: the top of `federation` knows the client."""


def range_to_proto(ours: ProtocolRange = PROTOCOL) -> tensors_pb2.ProtocolRange:
    """Return a range as a message."""
    return tensors_pb2.ProtocolRange(lowest=ours.lowest, highest=ours.highest, software=ours.software)


def range_from_proto(message: tensors_pb2.ProtocolRange) -> ProtocolRange:
    """Read a range.

    Raises:
        MalformedMessageError: it is empty or begins at 0.
    """
    if not 1 <= message.lowest <= message.highest:
        raise MalformedMessageError(f"protocol range {message.lowest} to {message.highest} is empty or was not set")
    software = message.software[:MAX_SOFTWARE_CHARACTERS]
    return ProtocolRange(lowest=message.lowest, highest=message.highest, software=software)


def negotiate(
    message: tensors_pb2.ProtocolRange, ours: ProtocolRange = PROTOCOL, *, peer: str = "client", us: str = "server"
) -> int:
    """Return the version to use with a peer.

    Args:
        message: what the peer can speak.
        ours: what we can speak.
        peer: what it is called to people; the text of a refusal is read at both ends.
        us: what we are called.

    Raises:
        MalformedMessageError: the peer's range is not valid.
        PeerError: there is no common version; the text names both ranges and who should upgrade.
    """
    theirs = range_from_proto(message)
    version = min(ours.highest, theirs.highest)
    if version < max(ours.lowest, theirs.lowest):
        older = us if ours.highest < theirs.lowest else peer
        raise PeerError(
            f"no common protocol: the {peer} ({theirs.software or 'unknown release'}) speaks {theirs.lowest} to "
            f"{theirs.highest}, the {us} ({ours.software}) {ours.lowest} to {ours.highest}; upgrade the {older}"
        )
    return version


def check_chosen(version: int, ours: ProtocolRange = PROTOCOL) -> int:
    """Return the version the other side chose for a session, if it was offered.

    Raises:
        PeerError: it was not.
    """
    if not ours.lowest <= version <= ours.highest:
        raise PeerError(
            f"the other side chose protocol {version}, offered were {ours.lowest} to {ours.highest}; it is not sound"
        )
    return version
