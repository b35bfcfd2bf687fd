"""How much memory this process holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

resource: Any
try:
    import resource
except ImportError:  # Windows has none
    resource = None

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in a unit of ``ru_maxrss``."""


def resident_bytes() -> int:
    """Resident memory of this process, bytes; 0 on a platform without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def most_resident_bytes() -> int:
    """Highest resident memory of this process so far, bytes, at the cost of a system call; 0 where it is not known."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * _PEAK_UNIT if resource is not None else 0


def peak_resident_bytes() -> int:
    """Highest resident memory of this process so far, bytes; 0 on a platform without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # the kernel writes kB and means KiB
    return 0
