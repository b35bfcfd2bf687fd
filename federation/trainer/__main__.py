"""Entry point of ``python -m federation.trainer``."""

import sys

from federation.trainer.process import main

if __name__ == "__main__":
    sys.exit(main())
