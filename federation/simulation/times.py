"""How long a site's round would take: a model of bandwidth and compute, in simulated seconds. Pure.

A site's round takes ``latency + down bytes / down + oracle calls * seconds per example * slowness + up bytes / up``.
Slowness is 1, or drawn once per site from a log-normal distribution of median 1 by the plan's seed, so the same sites
are slow in every round, in every run and whatever the method: stragglers, asynchrony and compression can be compared.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from federation.errors import PlanError
from federation.rounds.randomness import stream

_SPEED = re.compile(r"constant|lognormal:([0-9.]+)")


@dataclass(frozen=True, slots=True)
class TimeModel:
    """What costs time in a simulated federation.

    Attributes:
        seconds_per_example: gradient of one example at a site of slowness 1, seconds.
        speed: ``"constant"``: every site is alike; ``"lognormal:σ"``: slowness exp(σ z), z standard normal per site.
        up: bytes a second from a site to the server; 12.5e6 is 100 Mbit/s.
        down: bytes a second from the server to a site; 125e6 is 1 Gbit/s.
        latency_s: seconds from the server's asking to the site's starting.
        server_s: seconds the server takes for a round.

    Raises:
        PlanError: a rate that is not positive, a time below 0, or a speed that is neither form.
    """

    seconds_per_example: float = 1e-3
    speed: str = "constant"
    up: float = 12.5e6
    down: float = 125e6
    latency_s: float = 0.05
    server_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            if not getattr(self, name) > 0:
                raise PlanError(f"{name} is {getattr(self, name)} bytes a second; give more than 0")
        for name in ("seconds_per_example", "latency_s", "server_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise PlanError(f"{name} is {getattr(self, name)}; give a time of 0 or more")
        match = _SPEED.fullmatch(self.speed)
        if match is None or (match[1] is not None and not _is_number(match[1])):
            raise PlanError(f'speed is {self.speed!r}; give "constant" or "lognormal:0.5"')

    def slowness(self, site: str, seed: int) -> float:
        """Return by what factor a site computes slower than the model site: above 0, the same in every round."""
        if self.speed == "constant":
            return 1.0
        sigma = float(self.speed.partition(":")[2])
        return math.exp(sigma * stream(seed, 0, site, "slowness").gauss(0.0, 1.0))

    def training_s(self, *, site: str, seed: int, bytes_down: int, bytes_up: int, oracle_calls: int) -> float:
        """Return seconds from asking a site to train until its update is in.

        Args:
            site: its name.
            seed: root seed of the plan.
            bytes_down: payload bytes it fetches.
            bytes_up: payload bytes it sends.
            oracle_calls: gradients of single examples it computes.
        """
        compute = oracle_calls * self.seconds_per_example
        if self.speed != "constant":
            compute *= self.slowness(site, seed)
        return self.latency_s + bytes_down / self.down + compute + bytes_up / self.up

    def evaluation_s(self, *, bytes_down: int) -> float:
        """Return seconds from asking a site to evaluate until its metrics are in; forward passes are taken as free."""
        return self.latency_s + bytes_down / self.down


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
