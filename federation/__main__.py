"""``python -m federation`` is the ``federation`` command."""

from federation.client.command import main

if __name__ == "__main__":
    main()
