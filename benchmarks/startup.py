"""``startup``: seconds from submitting to the first round.

`value` is the median of several submissions; `limit` is the time a bare ``python -c "import numpy, grpc"`` takes on
this
machine for each process of the longest chain (aggregator, then collaborator, then trainer), measured in the same run;
`ratio` is value / limit.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.federated import federation_of, run_workload
from benchmarks.results import Result, median
from federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHAIN = 3


def _import_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy, grpc"], check=True)
    return time.perf_counter() - start


def measure(*, sites: int = 4, parameters: int = 10_000, submissions: int = 3) -> Iterator[Result]:
    """Yield one result."""
    limit = _CHAIN * median([_import_seconds() for _ in range(3)])
    seconds = []
    with federation_of(sites) as running:
        for _ in range(submissions):
            plan = Plan(rounds=1, sites=sites, minimum_sites=sites, local_steps=1)
            run = run_workload(running, parameters=parameters, plan=plan)
            seconds.append(run.ready_at - run.submitted_at)
    value = median(seconds)
    yield Result(
        benchmark="startup",
        case=f"{sites} sites",
        value=value,
        unit="s",
        limit=limit,
        ratio=value / limit,
        settings={"sites": sites, "parameters": parameters, "submissions": submissions},
    )
