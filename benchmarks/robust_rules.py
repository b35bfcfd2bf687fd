"""``robust-rules``: seconds and memory of every rule, over updates that lie in files, beside the plain mean of them.

Per rule two cases. ``NAME``: `value` is the median seconds of one combination, `limit` those of the mean in the same
run, and `ratio` is value / limit. ``NAME, memory``: `value` is the peak of resident memory above what was there before,
in MB, `limit` the target of 300 MB, `ratio` value / limit. The files are in the page cache, as they are after a round.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import Result, median
from federation.aggregation.registry import PRE_AGGREGATIONS, RULES, load_aggregation
from federation.aggregation.tiles import tiles_of
from federation.names import SiteName
from federation.plan import Plan
from federation.runtime.memory import reuse_freed_memory
from federation.storage.disk import pread_into
from federation.storage.tile_streams import PayloadTiles
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federation.aggregation.tiles import TileSource
    from federation.storage.disk import Buffer

MEMORY_MB = 300.0
_TRUSTED = {"monna": {"trusted": "site-00"}, "fltrust": {"trusted": "site-00"}}
_CHOICES = {"clipping": "clipping:3000", "bucketing": "bucketing:2"}


def measure(*, sites: int = 20, parameters: int = 10_000_000, byzantine: int = 4, repeats: int = 3) -> Iterator[Result]:
    """Yield two results per rule, and per pre-aggregation in front of `trimmed_mean`, the mean itself first."""
    reuse_freed_memory()  # as an aggregator does
    settings = {"sites": sites, "parameters": parameters, "byzantine": byzantine, "repeats": repeats}
    with _updates(sites, parameters) as source:
        limit = None
        for case, plan in _plans(byzantine):
            seconds, extra = _run(source, plan, repeats)
            limit = seconds if limit is None else limit
            yield Result(
                benchmark="robust-rules", case=case, value=seconds, unit="s", limit=limit, ratio=seconds / limit,
                settings=settings,
            )  # fmt: skip
            yield Result(
                benchmark="robust-rules", case=f"{case}, memory", value=extra / 1e6, unit="MB", limit=MEMORY_MB,
                ratio=extra / 1e6 / MEMORY_MB, settings=settings,
            )  # fmt: skip


def _plans(byzantine: int) -> Iterator[tuple[str, Plan]]:
    for name in RULES:
        f = 0 if name == "mean" else byzantine
        yield name, Plan(rule=name, byzantine=f, rule_options=_TRUSTED.get(name, {}))
    for name in PRE_AGGREGATIONS:
        choice = _CHOICES.get(name, name)
        f = 1 if name == "bucketing" else byzantine
        yield f"{name} + trimmed_mean", Plan(rule="trimmed_mean", byzantine=f, pre_aggregation=(choice,))


def _run(source: TileSource, plan: Plan, repeats: int) -> tuple[float, int]:
    """Return the median seconds of one combination, and the bytes by which it raised the peak of resident memory."""
    times, extra = [], 0
    for _ in range(repeats):
        combiner = load_aggregation(plan).for_round(Random)
        before = _forget_peak()
        started = time.perf_counter()
        for _ in combiner.combine(source):
            pass
        times.append(time.perf_counter() - started)
        extra = max(extra, _resident("VmHWM") - before)
    return median(times), extra


def _forget_peak() -> int:
    """Give free memory back, return the resident bytes of this process, and let its peak begin from there."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


class _File:
    """Implements `Readable`."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, self._descriptor)
        self.nbytes = path.stat().st_size

    def pread_into(self, offset: int, view: Buffer) -> None:
        pread_into(self._descriptor, view, offset, self._path)


@contextlib.contextmanager
def _updates(sites: int, parameters: int) -> Iterator[TileSource]:
    """Write one update per site, alike but for noise, and yield them as a rule sees them."""
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(parameters,))])
    common = np.random.default_rng(0).standard_normal(parameters, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        names = [SiteName(f"site-{index:02d}") for index in range(sites)]
        files: Sequence[Any] = [_write(Path(folder) / name, common, seed, stack) for seed, name in enumerate(names, 1)]
        yield PayloadTiles(names, [1.0] * sites, files, tiles_of(schema, floats=True))


def _write(path: Path, common: np.ndarray[Any, Any], seed: int, stack: contextlib.ExitStack) -> _File:
    noise = np.random.default_rng(seed).standard_normal(len(common), dtype=np.float32)
    path.write_bytes((common + noise).tobytes())
    return _File(path, stack)
