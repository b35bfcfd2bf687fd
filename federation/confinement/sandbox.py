"""What a trainer can see and do: the bubblewrap command around it, or a word on what is weaker without.

Rules:

1. Nothing is shared with the host that is not named here: all namespaces are new, so there is no network, no other
   process and no host file; capabilities are dropped; the trainer dies with its parent.
2. Visible, read-only: system libraries, the interpreter and its packages, the bundle, and the paths the silo's owner
   listed. Visible and writable: exchange folder and workspace. Everything else does not exist inside.
3. Of two rules on one path the deeper one decides. A folder to hide below a readable one is covered with an empty one;
   a file to hide takes the folder it lies in with it, because a mount on a file is lost when the file is renewed.
   A file that cannot be hidden so is a `ConfigurationError`, before anything is started.
4. The environment is made here from nothing, sandbox or no sandbox.

Sandboxing is bubblewrap's (github.com/containers/bubblewrap); it needs no privilege where user namespaces are allowed.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from federation.confinement.interpreter import environment_to_import
from federation.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from federation.confinement.interpreter import Interpreter

_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",  # Debian's BLAS is found through it
    "/etc/localtime",
    "/sys/devices/system/cpu",  # OpenMP counts cores there
)
_NEW_NAMESPACES = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "trainer")
_PROBE_S = 20.0


class SandboxMode(StrEnum):
    """Whether a trainer must be sandboxed; the silo's owner decides.

    ``required`` refuses to start one without a sandbox, ``auto`` uses one where it works and says so where it does not,
    ``none`` never uses one.
    """

    REQUIRED = "required"
    AUTO = "auto"
    NONE = "none"


class _Access(Enum):
    READ = "--ro-bind"
    WRITE = "--bind"
    DEVICE = "--dev-bind-try"
    HIDE = "--tmpfs"


@dataclass(frozen=True, slots=True)
class _Rule:
    access: _Access
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What one trainer may touch; every path absolute.

    Attributes:
        interpreter: Python and what it needs.
        workspace: its own folder and home, writable.
        writable: further writable folders, such as the exchange folder.
        bundle: unpacked experiment, read-only; None when only shards are described.
        readable: what shards read, as the silo's owner listed it.
        hidden: keys and state that must not be seen even if something readable holds them.
        python_path: folders to import shard factories from; readable too.
        devices: such as ``/dev/nvidia0``.
        threads: for OpenMP and BLAS.
    """

    interpreter: Interpreter
    workspace: Path
    writable: tuple[Path, ...] = ()
    bundle: Path | None = None
    readable: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    python_path: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How trainers of this process are kept apart from the rest of the machine.

    Attributes:
        program: bubblewrap, or None if trainers run without.
        why_not: why there is none.
    """

    program: Path | None
    why_not: str = ""

    @classmethod
    def choose(cls, mode: SandboxMode) -> Sandbox:
        """Return the sandbox that `mode` allows and this machine offers; blocks for a trial run.

        Raises:
            ConfigurationError: one is required and none works.
        """
        if mode is SandboxMode.NONE:
            return cls(None, "the sandbox is switched off (sandbox = none)")
        program = shutil.which("bwrap")
        problem = "bubblewrap (bwrap) is not installed" if program is None else _try_out(program)
        if not problem and program is not None:
            return cls(Path(program).absolute())
        if mode is SandboxMode.REQUIRED:
            raise ConfigurationError(
                f"sandbox = required, but {problem}; install bubblewrap and allow user namespaces, "
                "or set sandbox = auto and accept what is weaker"
            )
        return cls(None, problem)

    @property
    def is_confined(self) -> bool:
        """Whether experiment code is kept from network and files."""
        return self.program is not None

    def describe_weakness(self) -> str:
        """Return what a trainer can do that it should not; empty if it is sandboxed."""
        if self.is_confined:
            return ""
        return (
            f"{self.why_not}: experiment code runs as this user and can read every file this user can, this site's key "
            "files and data of other experiments among them, and can reach the network. Its environment is clean, its "
            "resource limits hold and it dies with its parent; processes it starts itself may outlive it. "
            "Admit only bundles you have read, or install bubblewrap."
        )

    def command(self, confinement: Confinement, arguments: Sequence[str]) -> list[str]:
        """Return the argv that runs the interpreter with `arguments`.

        Raises:
            ConfigurationError: a path to read does not exist, or a path to hide cannot be hidden.
        """
        run = [str(confinement.interpreter.executable), *arguments]
        if self.program is None:
            return run
        options = [str(self.program), *_NEW_NAMESPACES, *_system_options()]
        for rule in _rules(confinement):
            options += [rule.access.value, str(rule.path)]
            if rule.access is not _Access.HIDE:
                options.append(str(rule.path))
        return [*options, "--chdir", str(confinement.workspace), "--", *run]

    def environment(self, confinement: Confinement) -> dict[str, str]:
        """Return the trainer's whole environment."""
        threads = str(confinement.threads)
        workspace = str(confinement.workspace)
        return {
            **environment_to_import(confinement.python_path),
            "PATH": f"{confinement.interpreter.executable.parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": workspace,
            "TMPDIR": "/tmp" if self.is_confined else workspace,  # noqa: S108  (a new, private one)
            "LANG": "C.UTF-8",
            # There is no passwd file inside, and getpass.getuser would fail without.
            "USER": "trainer",
            "LOGNAME": "trainer",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            # The order of sets must not differ between two runs with one seed.
            "PYTHONHASHSEED": "0",
            # What it printed before it died is in the log.
            "PYTHONUNBUFFERED": "1",
        }


def _try_out(program: str) -> str:
    """Return why bubblewrap does not work on this machine; empty if it does."""
    trial = [program, *_NEW_NAMESPACES, *_system_options(), "--", "/usr/bin/true"]
    try:
        done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here ({error})"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip()[-200:] or f"exit code {done.returncode}"
    return f"bubblewrap does not work here ({said})"


def _system_options() -> list[str]:
    options: list[str] = []
    for folder in _SYSTEM_FOLDERS:
        path = Path(folder)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), folder]
        elif path.exists():
            options += ["--ro-bind", folder, folder]
    for file in _SYSTEM_FILES:
        options += ["--ro-bind-try", file, file]
    return [*options, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  (a new, private one)


def _rules(confinement: Confinement) -> list[_Rule]:
    """Return the rules of a confinement, outer paths first, so that deeper ones cover them."""
    readable = {*confinement.interpreter.readable, *confinement.python_path, *confinement.readable}
    if confinement.bundle is not None:
        readable.add(confinement.bundle)
    writable = {confinement.workspace, *confinement.writable}
    for path in (*readable, *writable):
        if not path.is_absolute() or not path.exists():
            raise ConfigurationError(f"a trainer is to see {path}, which does not exist or is not an absolute path")
    rules = {_Rule(_Access.READ, path) for path in readable - writable}
    rules |= {_Rule(_Access.WRITE, path) for path in writable}
    visible = readable | writable | {Path(folder) for folder in _SYSTEM_FOLDERS if Path(folder).is_dir()}
    rules |= {_Rule(_Access.HIDE, folder) for folder in _folders_to_cover(confinement.hidden, visible)}
    rules |= {_Rule(_Access.DEVICE, path) for path in confinement.devices}
    return sorted(rules, key=lambda rule: (len(rule.path.parts), rule.path))


def _folders_to_cover(hidden: Sequence[Path], visible: set[Path]) -> Iterator[Path]:
    for secret in hidden:
        # Links are resolved on both sides: a readable link may lead to where the keys are.
        target = secret.resolve()
        folder = target if target.is_dir() else target.parent
        for path in visible:
            source = path.resolve()
            if not target.is_relative_to(source):
                continue
            if source == target or source == folder:
                raise ConfigurationError(
                    f"a trainer is to see {path}, which would show it {secret}; "
                    "list narrower paths, or move keys and state to a folder of their own"
                )
            if folder.exists():
                yield path / folder.relative_to(source)
