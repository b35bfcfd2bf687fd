"""Speed and memory, measured against a limit of the same run. ``python -m benchmarks NAME --json``; see README.md."""
