"""Every random stream of an experiment, derived from the plan's one seed.

A stream is named by (seed, round, site, purpose). Equal names give equal streams on any machine, in any process and
after any restart, so what is random in an experiment can be repeated; different names give unrelated ones, so no two
uses ever share a stream by accident.
"""

from __future__ import annotations

import hashlib
import random
from json.encoder import encode_basestring_ascii as _quoted


def derive_seed(seed: int, round_number: int, site: str, purpose: str) -> int:
    """Return the seed of one random stream.

    The first eight bytes, big-endian, of the SHA-256 of the canonical JSON list ``[seed, round, site, purpose]``: JSON,
    because joining text with a separator would let two names collide.

    Args:
        seed: root seed of the plan.
        round_number: round the stream belongs to; 0 for what happens before the first.
        site: site it belongs to; empty for the federation's own.
        purpose: what it is for, such as ``"sampling"`` or ``"shuffle"``.

    Returns:
        An integer from 0 to 2**64 - 1.
    """
    name = f"[{int(seed)},{int(round_number)},{_quoted(site)},{_quoted(purpose)}]"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def stream(seed: int, round_number: int, site: str, purpose: str) -> random.Random:
    """Return a fresh generator for one random stream; arguments as `derive_seed`."""
    return random.Random(derive_seed(seed, round_number, site, purpose))  # noqa: S311 - repeatable on purpose, no secret
