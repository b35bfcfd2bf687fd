"""Between fork and the real program: sets limits on itself, then becomes it.

Run by path with ``python -I -S exec_stub.py JSON``, so that it imports nothing of ours and starts in milliseconds.
It replaces ``preexec_fn``, which would run Python between fork and exec, where gRPC's threads hold locks for ever.

The argument is a JSON object: ``argv``; ``limits`` (``memory_bytes``, ``open_files``, ``cpu_s``, ``processes``, each a
number or null); ``parent`` (pid to die with, or null). `under_stub` makes the command.

Exit codes of its own: 126 if limits cannot be set, 127 if the program cannot be started, 143 if the parent is gone.
"""

import json
import os
import sys


def under_stub(argv: list[str], *, limits: dict[str, int | None], parent: int | None) -> list[str]:
    """Return the command that sets limits, then becomes `argv`.

    Args:
        argv: program and arguments.
        limits: what it may use; see above.
        parent: pid of the process that starts the command; once the thread of it that did so ends, SIGKILL ends the
            program. None to let it live on.
    """
    order = {"argv": argv, "limits": limits, "parent": parent}
    return [sys.executable, "-I", "-S", __file__, json.dumps(order)]


def _apply_limits(limits: dict[str, int | None]) -> None:
    import resource

    # RLIMIT_DATA, not RLIMIT_AS: torch and CUDA reserve address space they never touch.
    kinds = {
        "memory_bytes": resource.RLIMIT_DATA,
        "open_files": resource.RLIMIT_NOFILE,
        "cpu_s": resource.RLIMIT_CPU,
        "processes": resource.RLIMIT_NPROC,
    }
    # A core file would be a copy of keys or of patients' data.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, value in limits.items():
        if value is not None:
            hard = resource.getrlimit(kinds[name])[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kinds[name], (value, value))


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; ends it now if `parent` is gone already.

    Raises:
        OSError: the kernel refuses. Linux only.
    """
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above; then no signal will ever come.
    if os.getppid() != parent:
        sys.exit(143)


def main() -> None:
    """Apply what the argument says, then exec."""
    order = json.loads(sys.argv[1])
    try:
        _apply_limits(order["limits"])
        if order["parent"] is not None:
            die_with(order["parent"])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"limits {order['limits']} could not be set: {error}\n")
        sys.exit(126)
    argv = order["argv"]
    try:
        os.execvpe(argv[0], argv, os.environ)  # noqa: S606  (the argument list is our own)
    except OSError as error:
        sys.stderr.write(f"{argv[0]} could not be started: {error}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
