"""Which sites a round asks: a draw that anybody with the plan can repeat.

The draw depends on the plan's seed, the round, the attempt and the *set* of connected sites, never on the order in
which they connected. A retried round draws again, so that one silent site cannot hold every attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.rounds import randomness

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.names import SiteName


def draw_sites(
    connected: Iterable[SiteName], *, sample: int | None, seed: int, round_number: int, attempt: int
) -> tuple[SiteName, ...]:
    """Return the sites to ask, in name order.

    Args:
        connected: sites that could be asked.
        sample: how many to ask; None, or more than there are: all.
        seed: root seed of the plan.
        round_number: round, from 1.
        attempt: try at this round, from 1.
    """
    candidates = sorted(set(connected))
    if sample is None or sample >= len(candidates):
        return tuple(candidates)
    generator = randomness.stream(seed, round_number, "", f"sampling/{attempt}")
    return tuple(sorted(generator.sample(candidates, sample)))
