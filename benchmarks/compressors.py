"""``compressors``: gigabytes of float32 a codec encodes and decodes in a second, on one core.

`value` is the speed of one direction over the vector's own bytes (not over those that travel); `limit` is a copy of the
same bytes in the same run; `ratio` is value / limit. The targets are absolute: 0.5 GB/s for codecs that work element by
element, 0.2 for those that choose, rotate or factorise.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results import Result
from federation.compression import BLOCK_ELEMENTS, PayloadDecoder, encode_payload, load_codec
from federation.compression.codec import BytesSource
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPECS = (
    "identity", "bernoulli:0.9", "rand_k:0.01", "top_k:0.01", "natural", "dithering:8,2", "qsgd:16", "terngrad",
    "natural_dithering:8,2", "dgc:0.001", "stc:0.01", "eden:1", "eden:4", "float16", "float16:stochastic", "bfloat16",
    "bfloat16:stochastic", "int8:4096", "int8:4096,stochastic", "powersgd:4",
)  # fmt: skip


def measure(*, elements: int = 25_000_000, repeats: int = 3) -> Iterator[Result]:
    """Yield two results per codec: the best of `repeats` for encoding and for decoding block by block."""
    with _on_one_core():
        yield from _measure(elements, repeats)


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _measure(elements: int, repeats: int) -> Iterator[Result]:
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(elements // 1000, 1000))])
    x = {"w": np.random.default_rng(0).standard_normal((elements // 1000, 1000), dtype=np.float32)}
    out = np.empty(BLOCK_ELEMENTS, np.float32)
    copied = np.empty_like(x["w"])
    limit = schema.nbytes / _best(lambda: np.copyto(copied, x["w"]), repeats) / 1e9
    for spec in SPECS:
        codec = load_codec(spec)
        data = encode_payload(schema, x, codec, seed=0)

        def decode(data: bytes = data, spec: str = spec) -> None:
            decoder = PayloadDecoder(BytesSource(data), schema, [spec])
            for start in range(0, schema.elements, BLOCK_ELEMENTS):
                decoder.read(4 * start, out[: min(BLOCK_ELEMENTS, schema.elements - start)])

        encode_s = _best(lambda: encode_payload(schema, x, codec, seed=0), repeats)  # noqa: B023 - called at once
        bits = 8 * len(data) / schema.elements
        for case, seconds in (("encode", encode_s), ("decode", _best(decode, repeats))):
            speed = schema.nbytes / seconds / 1e9
            yield Result(
                benchmark="compressors", case=f"{spec}, {case}", value=speed, unit="GB/s", limit=limit,
                ratio=speed / limit, settings={"elements": schema.elements, "bits_per_element": round(bits, 3)},
            )  # fmt: skip


def _best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
