"""Keeping freed memory. What it gains is measured by the throughput benchmark, not here."""

import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, sys
from federation.runtime.memory import reuse_freed_memory
if sys.argv[1] == "reuse":
    assert reuse_freed_memory()
def touch():
    block = bytearray(8 << 20)
    del block
for _ in range(3):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of the C library of Linux")
def test_a_freed_block_is_used_again_without_page_faults() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, "reuse"], capture_output=True, text=True, check=True
    )
    pages_of_twenty_blocks = 20 * (8 << 20) // 4096
    assert int(finished.stdout) < pages_of_twenty_blocks // 10
