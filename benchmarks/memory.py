"""``memory``: peak resident memory of aggregator and collaborators, in models.

`value` is the peak in multiples of the model; `limit` is the target for the aggregator, 2 models + 200 MB, in the same
unit; `ratio` is value / limit, so at most 1 is good. The last case compares the aggregator at the fewest and at the
most sites: `ratio` there is most / fewest, and the target is at most 1.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.federated import federation_of, run_workload
from benchmarks.results import Result
from federation.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOWANCE_BYTES = 200e6
ALLOWANCE_MODELS = 2.0


def measure(*, sites: tuple[int, ...] = (4, 16), parameters: int = 25_000_000, rounds: int = 3) -> Iterator[Result]:
    """Yield two results per number of sites and one that compares them."""
    model_bytes = 4 * parameters
    limit = ALLOWANCE_MODELS + ALLOWANCE_BYTES / model_bytes
    peaks: dict[int, int] = {}
    for count in sites:
        with federation_of(count) as running:
            plan = Plan(rounds=rounds, sites=count, minimum_sites=count, local_steps=1, evaluate_every=0)
            run = run_workload(running, parameters=parameters, plan=plan)
        peaks[count] = run.aggregator_peak
        settings = {"sites": count, "parameters": parameters, "rounds": rounds}
        for case, peak in (("aggregator", run.aggregator_peak), ("collaborator", max(run.collaborator_peaks))):
            value = peak / model_bytes
            yield Result(
                benchmark="memory", case=f"{case}, {count} sites, {model_bytes / 1e6:.0f} MB", value=value,
                unit="models", limit=limit, ratio=value / limit, settings=settings,
            )  # fmt: skip
    few, many = min(sites), max(sites)
    yield Result(
        benchmark="memory",
        case=f"aggregator, {many} against {few} sites",
        value=peaks[many] / model_bytes,
        unit="models",
        limit=peaks[few] / model_bytes,
        ratio=peaks[many] / peaks[few],
        settings={"sites": list(sites), "parameters": parameters, "rounds": rounds},
    )
