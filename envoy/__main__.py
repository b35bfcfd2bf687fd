"""``python -m envoy`` is the ``envoy`` command."""

from envoy.command import main

if __name__ == "__main__":
    main()
