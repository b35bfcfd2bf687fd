"""``python -m federation.aggregator``: see `federation.aggregator.process`."""

from __future__ import annotations

import sys

from federation.aggregator.process import main

if __name__ == "__main__":
    sys.exit(main())
