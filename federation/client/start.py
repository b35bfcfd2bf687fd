"""Where the `federation` command begins: Ctrl-C while its modules load is one line too, and no traceback."""

from __future__ import annotations

import sys

_INTERRUPTED = 130
"""`federation.client.exits.Exit.INTERRUPTED`, whose module may be what is not loaded yet."""


def main() -> None:
    """Load the command and run it."""
    try:
        from federation.client.command import main as command

        command()
    except KeyboardInterrupt:
        print("federation: interrupted; what runs elsewhere goes on", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None


if __name__ == "__main__":
    main()
