"""The `federation` command without a network: help, usage, errors as one line and an exit code.

What it does over a director is in `tests/integration`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from federation.client.command import app
from federation.client.exits import Exit
from federation.names import FederationName, Identity, Role
from federation.pki.authority import CertificateAuthority, issue_identity

COMMANDS = (
    "quickstart", "pki", "submit", "list", "show", "watch", "cancel", "release", "logs", "download", "report", "envoys",
    "doctor", "simulate", "compare", "sweep",
)  # fmt: skip


INTERRUPTED = "federation: interrupted; what runs elsewhere goes on\n"


def run(*arguments: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "federation.client.command", *arguments],
        capture_output=True, text=True, check=False,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "COLUMNS": "200"} | environ,
    )  # fmt: skip


def test_help_names_every_command_and_every_exit_code() -> None:
    shown = CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, ["--help"]).output
    assert [name for name in COMMANDS if name not in shown] == []
    assert [code.meaning for code in Exit if code.meaning not in " ".join(shown.split())] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [name, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "pki"])
def test_commands_that_print_data_can_print_json(name: str) -> None:
    assert "--json" in CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [name, "--help"]).output


def test_an_error_is_one_line_on_standard_error_and_its_exit_code(tmp_path: Path) -> None:
    done = run("list", home=tmp_path)
    assert done.returncode == Exit.CONFIGURATION
    assert done.stdout == ""
    assert done.stderr.startswith("federation: no client profile at ")
    assert done.stderr.count("\n") == 1


def test_a_wrong_command_line_has_its_own_exit_code(tmp_path: Path) -> None:
    assert run("list", "--no-such-option", home=tmp_path).returncode == Exit.USAGE


def test_a_state_that_there_is_none_of_is_a_wrong_command_line_that_lists_them(tmp_path: Path) -> None:
    done = run("list", "--state", "bogus", home=tmp_path)
    assert done.returncode == Exit.USAGE
    assert "'bogus' is not one of 'submitted', 'queued', 'running'" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run("quickstart", "-o", str(tmp_path / "file" / "quickstart"), home=tmp_path)
    assert done.returncode == Exit.FAILURE
    assert done.stderr == f"federation: cannot write {tmp_path / 'file' / 'quickstart'}: Not a directory\n"


def test_doctor_without_a_profile_fails_and_its_json_is_json(tmp_path: Path) -> None:
    done = run("doctor", "--json", home=tmp_path)
    assert done.returncode == Exit.CONFIGURATION
    (finding,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (finding["check"], finding["outcome"]) == ("profile", "bad")


def test_what_the_terminal_has_no_letters_for_is_replaced(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=time.time())
    identity = Identity(federation=FederationName("demo"), role=Role.USER, name="alice")
    issue_identity(authority, identity, tmp_path / "alice", now=time.time())
    (tmp_path / "alice" / "client.toml").write_text('federation = "demo"\naddress = "127.0.0.1:1"\n')
    done = run("doctor", "--profile", str(tmp_path / "alice"), home=tmp_path, PYTHONIOENCODING="cp1252")
    assert done.stdout.splitlines()[:2] == [
        "? profile: federation demo at 127.0.0.1:1",
        "? files: certificate of spiffe://demo/user/alice",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_finds_no_room_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "federation.client.command", "doctor", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, env={"HOME": str(tmp_path)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        Exit.FAILURE, "federation: cannot write what is printed: No space left on device\n"
    )  # fmt: skip


def test_output_beyond_a_quota_is_one_line_and_no_traceback(tmp_path: Path, files_of_at_most: Any) -> None:
    with (tmp_path / "output").open("w") as output, files_of_at_most(1):
        done = subprocess.run(
            [sys.executable, "-m", "federation.client.command", "doctor", "--json"],
            stdout=output, stderr=subprocess.PIPE, text=True, check=False, env={"HOME": str(tmp_path)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        Exit.FAILURE,
        "federation: cannot write what is printed: File too large\n",
    )


@pytest.mark.parametrize("command", [("doctor", "--json"), ("doctor",), ("--help",)])
def test_a_reader_that_has_gone_ends_the_command_without_a_word(tmp_path: Path, command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "federation", *command],
            stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env={"HOME": str(tmp_path)},
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.FAILURE, "")


def test_a_server_that_speaks_no_tls_is_one_line_without_what_grpc_logs(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=time.time())
    identity = Identity(federation=FederationName("demo"), role=Role.USER, name="alice")
    issue_identity(authority, identity, tmp_path / "alice", now=time.time())
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        (tmp_path / "alice" / "client.toml").write_text(f'federation = "demo"\naddress = "{address}"\n')
        done = run("list", "--profile", str(tmp_path / "alice"), home=tmp_path)
        server.shutdown()
    assert done.returncode == Exit.UNREACHABLE
    assert done.stderr.startswith("federation: ") and done.stderr.count("\n") == 1


def test_a_director_that_does_not_run_is_one_line_that_says_what_to_try(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=time.time())
    identity = Identity(federation=FederationName("demo"), role=Role.USER, name="alice")
    issue_identity(authority, identity, tmp_path / "alice", now=time.time())
    with socket.socket() as bound:  # a port that nobody listens at
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        (tmp_path / "alice" / "client.toml").write_text(f'federation = "demo"\naddress = "{address}"\n')
        done = run("list", "--profile", str(tmp_path / "alice"), home=tmp_path)
    assert done.returncode == Exit.UNREACHABLE and done.stderr.count("\n") == 1
    assert "nothing listens at this address" in done.stderr and "certificate" not in done.stderr
    assert done.stderr.endswith("; `federation doctor` looks for the reason\n")


def test_our_own_expired_certificate_is_why_a_director_does_not_answer(tmp_path: Path) -> None:
    then = time.time() - 3 * 365 * 86400
    authority = CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=then)
    identity = Identity(federation=FederationName("demo"), role=Role.USER, name="alice")
    issue_identity(authority, identity, tmp_path / "alice", now=then)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        (tmp_path / "alice" / "client.toml").write_text(f'federation = "demo"\naddress = "{address}"\n')
        done = run("list", "--profile", str(tmp_path / "alice"), home=tmp_path)
    assert done.returncode == Exit.CONFIGURATION and done.stderr.count("\n") == 1
    assert "/user/alice expired at " in done.stderr


def test_version_is_printed(tmp_path: Path) -> None:
    from federation import __version__

    done = run("--version", home=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_the_command_runs_as_a_module_and_the_package_shows_its_names() -> None:
    import federation

    done = subprocess.run(
        [sys.executable, "-m", "federation", "--version"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == federation.__version__
    assert set(federation.__all__) <= set(dir(federation))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
@pytest.mark.parametrize("command", [("watch",), ("logs", "--follow")])
def test_a_command_stopped_while_it_waits_for_an_answer_says_that_what_runs_goes_on(
    tmp_path: Path, number: int, code: int, command: tuple[str, ...]
) -> None:
    now, identity = time.time(), Identity(federation=FederationName("demo"), role=Role.USER, name="alice")
    authority = CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=now)
    issue_identity(authority, identity, tmp_path / "alice", now=now)
    # Whoever started the tests may have had SIGINT ignored, which a child inherits.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from federation.client.command import main; main()"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes a connection, and never says a word
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "alice" / "client.toml").write_text(f'federation = "demo"\naddress = "{address}"\n')
        with subprocess.Popen(
            [sys.executable, "-c", script, *command, "trial-12345678", "--profile", str(tmp_path / "alice")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin"},
        ) as watching:  # fmt: skip
            with silent.accept()[0]:  # not closed before it was stopped: it would be away
                watching.send_signal(number)
                _, said = watching.communicate(timeout=30)
    assert (watching.returncode, said) == (code, INTERRUPTED)


def test_sigterm_while_an_experiment_is_imported_is_no_fault_of_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "experiment.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    done = run("simulate", str(tmp_path), home=tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "federation: interrupted\n")


IMPORTING = """
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "federation.client.command":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from federation.client.start import main
main()
"""


def test_ctrl_c_while_the_command_still_loads_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, "", INTERRUPTED)


def test_the_installed_command_starts_where_ctrl_c_is_minded() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["federation"] == "federation.client.start:main"
