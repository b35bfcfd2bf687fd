"""Run the workload on a real federation of this machine and return what its history says."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from federation.client.local import LocalFederation, LocalSite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federation.client.views import Round
    from federation.plan import Plan

_WORKLOAD = Path(__file__).parent / "workload"
_SITE_CODE = Path(__file__).parent / "site"
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run gave.

    Attributes:
        rounds: committed rounds in order.
        submitted_at: Unix time the submission was accepted, seconds.
        ready_at: Unix time the first round began, seconds.
        aggregator_peak: peak resident memory of the aggregator process, bytes.
        collaborator_peaks: the same of each collaborator process.
    """

    rounds: tuple[Round, ...]
    submitted_at: float
    ready_at: float
    aggregator_peak: int
    collaborator_peaks: tuple[int, ...] = field(default=())


@contextlib.contextmanager
def federation_of(sites: int) -> Iterator[LocalFederation]:
    """Start a federation of so many sites, each with one tiny shard of the kind the workload asks for."""
    folder = Path(tempfile.mkdtemp(prefix="federation-bench-"))
    shard = {
        "name": "rows",
        "kind": "benchmark",
        "factory": "tiny_shard:TinyShard",
        "options": {"examples": 16},
    }
    settings = {"trainer": {"python_path": [_SITE_CODE.resolve()]}}
    members = [LocalSite(name=f"site-{number}", shards=[shard], settings=settings) for number in range(sites)]
    try:
        with LocalFederation(folder, sites=members) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_workload(running: LocalFederation, *, parameters: int, plan: Plan) -> Run:
    """Submit the workload and wait for its end.

    Raises:
        RuntimeError: it did not complete; says why.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "workload"
        shutil.copytree(_WORKLOAD, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "parameters.txt").write_text(str(parameters))
        (folder / "plan.json").write_text(json.dumps(plan.model_dump(mode="json")))
        with running.connect() as client:
            submitted_at = time.time()
            experiment = client.submit(folder)
            peaks: dict[str, int] = {}
            looked_at = 0.0
            for event in client.watch(experiment):
                # Peaks only grow, and looking through all processes takes milliseconds: not at every quick round.
                if event.round is not None and time.monotonic() - looked_at > _LOOK_S:
                    peaks = running.peak_memory() or peaks
                    looked_at = time.monotonic()
            details = client.show(experiment)
    if details.summary.state != "completed":
        raise RuntimeError(f"the workload ended {details.summary.state}: {details.summary.reason}")
    return Run(
        rounds=details.rounds,
        submitted_at=submitted_at,
        ready_at=details.rounds[0].started_at,
        aggregator_peak=max((peak for kind, peak in peaks.items() if kind.startswith("aggregator")), default=0),
        collaborator_peaks=tuple(peak for kind, peak in sorted(peaks.items()) if kind.startswith("collaborator")),
    )
