"""``python -m federation.aggregator``: see `federation.aggregator.process`."""

from __future__ import annotations

import sys

from federation.aggregator.process import main
from federation.runtime.memory import reuse_freed_memory

if __name__ == "__main__":
    reuse_freed_memory()
    sys.exit(main())
