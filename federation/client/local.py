"""A whole federation on this machine: real director, real envoys, real mutual TLS, in one folder.

The quickstart, the benchmarks and the integration tests all run on it, so what a newcomer sees, what is measured and
what is tested are the same processes. In order: an authority, certificates for everybody, a signing key that every site
pins, ``director.toml`` and one ``envoy.toml`` per site, then the daemons. Each says when it is ready
(`federation.runtime.notify`), so nothing is probed. Leaving the context ends every process that was started.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from federation.client.federation import Federation
from federation.client.profile import Profile
from federation.errors import ConfigurationError, TransportError
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority, issue_identity
from federation.pki.known import pin
from federation.pki.signing import fingerprint_of_file, make_signing_key
from federation.runtime.exec_stub import under_stub

START_TIMEOUT_S = 120.0
"""Seconds a daemon may take to say that it is ready; shards that import torch take a few."""
STOP_TIMEOUT_S = 30.0
"""Seconds a daemon may take to drain before it is killed."""
ORPHAN_S = 20.0
"""Seconds that children of a killed daemon go on before they end themselves."""
_USER = "researcher"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSite:
    """One site: its name, its shards as ``[[shards]]`` tables, and more settings of its ``envoy.toml``."""

    name: str
    shards: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Daemon:
    """A daemon that was started: its process, its log, and what it, or the one before it, said when it was ready."""

    process: subprocess.Popen[bytes]
    log: Path
    facts: dict[str, str]


class LocalFederation:
    """A federation in a folder; a context manager.

    Start it, and each daemon that is started again, from a thread that outlives it: the kernel ends a daemon with the
    thread that started it, so that nothing is left running.

    Args:
        folder: for certificates, configuration, state and logs; made if missing. A folder of an earlier run is
            used again.
        sites: its sites.
        name: federation name.
        director: more settings of ``director.toml``, as nested tables.

    Raises:
        ConfigurationError: a daemon ended before it was ready; the text holds the end of its log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sites: Sequence[LocalSite],
        name: str = "local",
        director: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.sites = {site.name: site for site in sites}
        self.name = FederationName(name)
        self.daemons: dict[str, Daemon] = {}
        self._director_settings = dict(director or {})
        self._sockets = Path(tempfile.mkdtemp(prefix="fed-"))  # socket paths may have 107 characters at most

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start_director()
            for site in self.sites:
                self._write_envoy(site)
            self._start({f"envoy-{site}": self._envoy_command(site) for site in self.sites})
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where the director listens, ``host:port``."""
        return self.daemons["director"].facts["ADDRESS"]

    @property
    def profile(self) -> Profile:
        """The profile of the federation's one user."""
        user = self.folder / "user"
        return Profile(
            federation=self.name,
            address=self.address,
            authority=user / "ca.pem",
            certificate=user / "cert.pem",
            key=user / "key.pem",
            signing_key=user / "signing.key",
        )

    def connect(self) -> Federation:
        """Return a client of the federation's user."""
        return Federation.connect(self.profile)

    def operator(self) -> Path:
        """Return the folder of an operator's profile; makes the operator at the first call."""
        folder = self.folder / "operator"
        if not (folder / "cert.pem").exists():
            identity = Identity(federation=self.name, role=Role.OPERATOR, name="operator")
            issue_identity(CertificateAuthority.load(self.folder / "ca"), identity, folder, now=time.time())
        (folder / "client.toml").write_text(to_toml({"federation": self.name, "address": self.address}))
        return folder

    def start_director(self) -> None:
        """Start the director, or start it again on the address it had."""
        earlier = self.daemons.get("director")
        port = int(earlier.facts["ADDRESS"].rpartition(":")[2]) if earlier else 0
        settings = _merge(
            {
                "federation": self.name,
                "state": "state",
                "listen": {"host": "127.0.0.1", "port": port},
                "tls": {"ca": "../ca"},
                "metrics": {"port": 0},
                "aggregators": {"orphan_s": ORPHAN_S},
            },
            self._director_settings,
        )
        path = self.folder / "director" / "director.toml"
        path.write_text(to_toml(settings))
        self._start({"director": [sys.executable, "-m", "director", "--config", str(path)]})
        self._write_profile()

    def start_envoy(self, site: str) -> None:
        """Start a site's envoy, or start it again."""
        self._start({f"envoy-{site}": self._envoy_command(site)})

    def stop(self, daemon: str) -> int:
        """Stop a daemon with SIGTERM and return its exit status; kills it if it does not drain in time."""
        process = self.daemons[daemon].process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_TIMEOUT_S)
        process.kill()
        return process.wait()

    def close(self) -> None:
        """End every daemon, envoys first; their children end with them."""
        for name in sorted(self.daemons, reverse=True):
            daemon = self.daemons[name]
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)
        for name in list(self.daemons):
            self.stop(name)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def peak_memory(self) -> dict[str, int]:
        """Return the peak resident bytes of each running aggregator and collaborator, by role and process id."""
        peaks: dict[str, int] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                role = next((role for role in ("aggregator", "collaborator") if f"federation.{role}" in command), None)
                if role is None or not any(str(self.folder) in part for part in command):
                    continue
                status = (entry / "status").read_text()
                peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
                peaks[f"{role}-{entry.name}"] = int(peak.split()[1]) * 1024
        return peaks

    # Set-up

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        if (self.folder / "ca" / "ca.key").exists():
            return
        authority = CertificateAuthority.create(self.name, self.folder / "ca", now=now)
        members = [(Role.DIRECTOR, "director", "director"), (Role.USER, _USER, "user")]
        members += [(Role.ENVOY, site, f"sites/{site}") for site in self.sites]
        for role, name, folder in members:
            identity = Identity(federation=self.name, role=role, name=name)
            issue_identity(authority, identity, self.folder / folder, now=now)
        make_signing_key(self.folder / "user" / "signing.key")
        fingerprint = fingerprint_of_file(self.folder / "user" / "signing.key")
        for site in self.sites:
            pin(self.folder / "sites" / site / "known.toml", "users", _USER, fingerprint)

    def _write_profile(self) -> None:
        (self.folder / "user" / "client.toml").write_text(to_toml({"federation": self.name, "address": self.address}))

    def _write_envoy(self, name: str) -> None:
        site = self.sites[name]
        settings = _merge(
            {"federation": self.name, "director": self.address, "state": "state", "shards": list(site.shards)}
            | {"limits": {"orphan_s": ORPHAN_S}},
            site.settings,
        )
        (self.folder / "sites" / name / "envoy.toml").write_text(to_toml(settings))

    def _envoy_command(self, site: str) -> list[str]:
        config = self.folder / "sites" / site / "envoy.toml"
        return [sys.executable, "-m", "envoy", "--config", str(config)]

    def _start(self, commands: Mapping[str, list[str]]) -> None:
        """Start daemons side by side and wait until each has said that it is ready."""
        waiting: dict[str, socket.socket] = {}
        try:
            for name, command in commands.items():
                facts: dict[str, str] = {}
                if name in self.daemons:
                    self.stop(name)  # one that died is reaped by it
                    facts = self.daemons[name].facts  # it may end before it says any: its port is asked for again
                waiting[name] = self._listen(name)
                log = self.folder / "logs" / f"{name}.log"
                log.parent.mkdir(exist_ok=True)
                environment = {**os.environ, "NOTIFY_SOCKET": str(self._sockets / name)}
                with log.open("ab") as output:
                    process = subprocess.Popen(
                        # a trial leaves nothing running, however we die
                        under_stub(list(command), limits={}, parent=os.getpid()),
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                self.daemons[name] = Daemon(process=process, log=log, facts=facts)
            deadline = time.monotonic() + START_TIMEOUT_S
            for name, channel in waiting.items():
                self.daemons[name].facts = _await_ready(name, self.daemons[name], channel, deadline)
        finally:
            for channel in waiting.values():
                channel.close()

    def _listen(self, name: str) -> socket.socket:
        path = self._sockets / name
        path.unlink(missing_ok=True)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        channel.bind(str(path))
        return channel


def _await_ready(name: str, daemon: Daemon, channel: socket.socket, deadline: float) -> dict[str, str]:
    pidfd = os.pidfd_open(daemon.process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(channel, selectors.EVENT_READ)
            selector.register(pidfd, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
                if channel in ready:
                    lines = channel.recv(65536).decode().splitlines()
                    if "READY=1" in lines:
                        return dict(line[2:].split("=", 1) for line in lines if line.startswith("X_"))
                elif pidfd in ready:
                    raise ConfigurationError(f"{name} ended before it was ready:\n{_tail(daemon.log)}")
                elif not ready:
                    raise TransportError(f"{name} was not ready after {START_TIMEOUT_S:g} s:\n{_tail(daemon.log)}")
    finally:
        os.close(pidfd)


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _merge(base: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(dict(merged[key]), value) if both else value
    return merged


def to_toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML: scalars first, then tables, then arrays of tables.

    The standard library reads TOML and does not write it; settings need only this much of it.
    """
    return "\n".join(_toml_lines(settings, ())) + "\n"


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[str]:
    def is_tables(value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)

    for key, value in table.items():
        if not isinstance(value, Mapping) and not is_tables(value):
            yield f"{json.dumps(key)} = {_toml_value(value)}"
    for key, value in table.items():
        where = ".".join(json.dumps(part) for part in (*path, key))
        if isinstance(value, Mapping):
            yield f"[{where}]"
            yield from _toml_lines(value, (*path, key))
        elif is_tables(value):
            for item in value:
                yield f"[[{where}]]"
                yield from _toml_lines(item, (*path, key))


def _toml_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value)
