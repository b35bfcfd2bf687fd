"""``compressors``: gigabytes of float32 a codec encodes and decodes in a second, on one core.

`value` is the speed of one direction over the vector's own bytes (not over those that travel); `limit` is the target,
0.5 GB/s for codecs that work element by element and 0.2 for those that choose, rotate or factorise; `ratio` is
value / limit, so at least 1 is good. Run as ``python -m benchmarks.compressors``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

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
ELEMENTWISE_GB_S = 0.5
OTHER_GB_S = 0.2


def measure(*, elements: int = 8_000_000, repeats: int = 3) -> Iterator[Result]:
    """Yield two results per codec: the best of `repeats` for encoding and for decoding block by block."""
    schema = TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(elements // 1000, 1000))])
    x = {"w": np.random.default_rng(0).standard_normal((elements // 1000, 1000), dtype=np.float32)}
    out = np.empty(BLOCK_ELEMENTS, np.float32)
    for spec in SPECS:
        codec = load_codec(spec)
        data = encode_payload(schema, x, codec, seed=0)

        def decode(data: bytes = data, spec: str = spec) -> None:
            decoder = PayloadDecoder(BytesSource(data), schema, [spec])
            for start in range(0, schema.elements, BLOCK_ELEMENTS):
                decoder.read(4 * start, out[: min(BLOCK_ELEMENTS, schema.elements - start)])

        encode_s = _best(lambda: encode_payload(schema, x, codec, seed=0), repeats)  # noqa: B023 - called at once
        limit = ELEMENTWISE_GB_S if codec.is_elementwise else OTHER_GB_S
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


def _main(
    elements: Annotated[int, typer.Option(min=1000, help="float32 elements of the vector.")] = 8_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line and case.")] = False,
) -> None:
    """Speed of every codec on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for result in measure(elements=elements):
        print(result.to_json() if as_json else result.to_text(), flush=True)


if __name__ == "__main__":
    typer.run(_main)
