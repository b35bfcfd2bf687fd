"""``python -m director`` is the ``director`` command."""

from director.command import main

if __name__ == "__main__":
    main()
