"""``round-latency``: milliseconds a round costs when nothing is trained, evaluation included.

`value` is the median over the rounds after the first; `limit` is the target on the reference machine, 25 ms; `ratio` is
value / limit, so below 1 is good.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from benchmarks.federated import federation_of, run_workload
from benchmarks.results import Result, median
from federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET_MS = 25.0


def measure(*, sites: int = 4, parameters: int = 10_000, rounds: int = 40) -> Iterator[Result]:
    """Yield one result."""
    with federation_of(sites) as running:
        plan = Plan(rounds=rounds, sites=sites, minimum_sites=sites, local_steps=1)
        run = run_workload(running, parameters=parameters, plan=plan)
    starts = [report.started_at for report in run.rounds]
    gaps = [1e3 * (after - before) for before, after in itertools.pairwise(starts[1:])]
    value = median(gaps)
    yield Result(
        benchmark="round-latency",
        case=f"{sites} sites, {parameters} parameters",
        value=value,
        unit="ms",
        limit=TARGET_MS,
        ratio=value / TARGET_MS,
        settings={"sites": sites, "parameters": parameters, "rounds": rounds},
    )
