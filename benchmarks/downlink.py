"""``downlink``: seconds an aggregator takes to make the step to a new model, and a site to apply it.

Models are files, as theirs are. `limit` is a copy of the model into a file of the same kind, in the same run; `ratio`
is value / limit. The last case is how many MB the peak resident memory of this process grew by, over all of them: a
part of the model and a few tiles, whatever its size.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results import Result, median
from federation.aggregator.steps import make_step
from federation.names import RoundNumber
from federation.plan import Plan
from federation.storage.safetensors_files import ModelFile, ModelWriter
from federation.storage.steps import apply_step
from federation.storage.tile_streams import copy
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CODECS = ("qsgd:16", "rand_k:0.01", "top_k:0.01", "natural")
_ROWS = 1000


def measure(*, parameters: int = 25_000_000, codecs: Sequence[str] = CODECS, repeats: int = 3) -> Iterator[Result]:
    """Yield two results per codec, medians of `repeats`, and the memory."""
    schema = TensorSchema.of(
        TensorSpec(name=f"{place:04}", dtype=DType.FLOAT32, shape=(_ROWS, _ROWS))
        for place in range(max(parameters // _ROWS**2, 1))
    )
    with tempfile.TemporaryDirectory(prefix="federation-downlink-") as name:
        folder = Path(name)
        for place, model in enumerate(("held", "new")):
            _write(folder / model, schema, place)
        before = _peak_mb()
        limit = median([_copy(folder, schema) for _ in range(repeats)])
        for codec in codecs:
            rounds = [_round(folder, schema, codec, number + 1) for number in range(repeats)]
            settings = {"parameters": schema.elements, "step_bytes": rounds[-1][2]}
            for index, case in enumerate(("made", "applied")):
                value = median([each[index] for each in rounds])
                yield Result(
                    benchmark="downlink", case=f"{codec}, {case}", value=value, unit="s", limit=limit,
                    ratio=value / limit, settings=settings,
                )  # fmt: skip
        yield Result(
            benchmark="downlink", case="memory", value=_peak_mb() - before, unit="MB", limit=None, ratio=None,
            settings={"parameters": schema.elements},
        )  # fmt: skip


def _write(path: Path, schema: TensorSchema, seed: int) -> None:
    random = np.random.default_rng(seed)
    with ModelWriter(path, schema) as writer:
        for tensor in schema:
            writer.append(random.standard_normal(tensor.elements, dtype=np.float32).view(np.uint8).data)
        writer.commit()


def _copy(folder: Path, schema: TensorSchema) -> float:
    with ModelFile.open(folder / "new") as new, ModelWriter(folder / "copy", schema) as writer:
        started = time.perf_counter()
        copy(new, writer)
        writer.finish()
        return time.perf_counter() - started


def _round(folder: Path, schema: TensorSchema, codec: str, number: int) -> tuple[float, float, int]:
    """Return the seconds of making a step and of applying it, and its bytes."""
    with ModelFile.open(folder / "new") as new, ModelFile.open(folder / "held") as held:
        with ModelWriter(folder / "server", schema) as writer:
            started = time.perf_counter()
            step = make_step(
                model=new, held=held, writer=writer, plan=Plan(downlink=codec), round_number=RoundNumber(number),
                folder=folder,
            )  # fmt: skip
            made = time.perf_counter() - started
        with ModelWriter(folder / "site", schema) as writer:
            started = time.perf_counter()
            apply_step(held=held, step=step.change, buffers=None, downlink=codec, writer=writer)
            applied = time.perf_counter() - started
        nbytes = step.nbytes
        step.close()
    return made, applied, nbytes


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
