"""``python -m federation.collaborator --config FILE``: started by an envoy."""

from federation.collaborator.process import main
from federation.runtime.memory import reuse_freed_memory

if __name__ == "__main__":
    reuse_freed_memory()
    main()
