"""``python -m federation.collaborator --config FILE``: started by an envoy."""

from federation.collaborator.process import main

if __name__ == "__main__":
    main()
