"""``codec-round``: seconds a round of a large model takes with each compressor, beside the same round sent whole.

`value` is the median round after the first, start to start, with the compressor between sites and server; `limit` is
that of ``identity`` in the same run; `ratio` is limit / value: above 1, compressing pays even on this machine's own
loopback, where bytes cost next to nothing. The settings say how many bytes a round took up.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from benchmarks.federated import federation_of, run_workload
from benchmarks.results import Result, median
from federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CODECS = ("identity", "rand_k:0.01", "top_k:0.01", "natural", "qsgd:16", "terngrad", "float16", "int8:1024", "stc:0.01")


def measure(
    *, sites: int = 2, parameters: int = 5_000_000, rounds: int = 4, codecs: Sequence[str] = CODECS
) -> Iterator[Result]:
    """Yield one result per compressor, ``identity`` first."""
    limit = 0.0
    for codec in ("identity", *(codec for codec in codecs if codec != "identity")):
        value, bytes_up = _round(sites, parameters, rounds, codec)
        limit = limit or value
        yield Result(
            benchmark="codec-round",
            case=f"{codec}, {sites} sites, {4 * parameters / 1e6:.0f} MB",
            value=value,
            unit="s",
            limit=limit,
            ratio=limit / value,
            settings={"codec": codec, "sites": sites, "parameters": parameters, "rounds": rounds, "bytes_up": bytes_up},
        )


def _round(sites: int, parameters: int, rounds: int, codec: str) -> tuple[float, int]:
    """Return the seconds of a round, and the bytes all sites sent in the last one."""
    plan = Plan(rounds=rounds, sites=sites, minimum_sites=sites, local_steps=1, evaluate_every=0, compression=codec)
    with federation_of(sites) as running:
        run = run_workload(running, parameters=parameters, plan=plan)
    starts = [report.started_at for report in run.rounds]
    value = median([after - before for before, after in itertools.pairwise(starts[1:])])
    return value, run.rounds[-1].bytes_up
