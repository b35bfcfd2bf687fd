"""What people and Prometheus see of a process: metrics, an HTTP address for them, and logs."""
