"""``throughput``: seconds a round of a large model takes, beside the same bytes over bare mutual-TLS sockets.

`value` is the median round after the first, start to start; `limit` is the bare sockets' median in the same run;
`ratio` is limit / value: 1 would be the speed of the bare sockets, the target is 0.4.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import bare_tls
from benchmarks.federated import federation_of, run_workload
from benchmarks.results import Result, median
from federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator


def measure(*, sites: int = 4, parameters: int = 25_000_000, rounds: int = 6) -> Iterator[Result]:
    """Yield one result."""
    nbytes = 4 * parameters
    with tempfile.TemporaryDirectory() as folder:
        bare = median(bare_tls.measure(Path(folder), sites=sites, nbytes=nbytes, rounds=max(3, rounds - 1)))
    with federation_of(sites) as running:
        plan = Plan(rounds=rounds, sites=sites, minimum_sites=sites, local_steps=1, evaluate_every=0)
        run = run_workload(running, parameters=parameters, plan=plan)
    starts = [report.started_at for report in run.rounds]
    value = median([after - before for before, after in itertools.pairwise(starts[1:])])
    yield Result(
        benchmark="throughput",
        case=f"{sites} sites, {nbytes / 1e6:.0f} MB",
        value=value,
        unit="s",
        limit=bare,
        ratio=bare / value,
        settings={"sites": sites, "parameters": parameters, "rounds": rounds},
    )
