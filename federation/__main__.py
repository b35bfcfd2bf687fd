"""``python -m federation`` is the ``federation`` command."""

from federation.client.start import main

if __name__ == "__main__":
    main()
