"""Hostile experiment code in a real sandbox, and a trainer's life and death as its owner sees them.

The trainer is a stand-in (`stand_in_trainer.py`) that tries things; the real one is tested where it is built.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from federation.confinement.handle import TrainerHandle, TrainerSettings
from federation.confinement.interpreter import examine
from federation.confinement.sandbox import SandboxMode
from federation.errors import ConfigurationError, TaskError
from federation.runtime.children import ChildSpec, Limits, spawn
from federation.v1 import trainer_pb2 as pb

STAND_IN = Path(__file__).with_name("stand_in_trainer.py")
MODES = [
    pytest.param(SandboxMode.REQUIRED, id="sandboxed", marks=pytest.mark.needs_bubblewrap),
    pytest.param(SandboxMode.NONE, id="not sandboxed"),
]


def _settings(site: Path, mode: SandboxMode, **changes: object) -> TrainerSettings:
    arguments: dict[str, object] = {
        "name": "trainer of test",
        "folder": site / "state/trainer",
        "log": site / "state/trainer.log",
        "workspace": site / "state/workspace",
        "exchange": site / "state/exchange",
        "bundle": site / "state/bundle",
        "readable": (site / "data",),
        "hidden": (site / "pki/key.pem", site / "state"),
        "sandbox": mode,
        "program": ("-P", str(site / "state/bundle" / STAND_IN.name)),
    }
    return TrainerSettings(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for folder in ("pki", "state/bundle", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pki/key.pem").write_text("the site's private key")
    (tmp_path / "state/journal").write_text("the envoy's state")
    (tmp_path / "data/patients.csv").write_text("age,outcome")
    (tmp_path / "state/bundle" / STAND_IN.name).write_text(STAND_IN.read_text())
    return tmp_path


@asynccontextmanager
async def _running(settings: TrainerSettings) -> AsyncIterator[TrainerHandle]:
    handle = TrainerHandle(settings)
    await handle.start()
    try:
        yield handle
    finally:
        handle.kill()
        await handle.exited()


async def _try(handle: TrainerHandle, what: str, *, timeout_s: float | None = 30.0, **arguments: Any) -> str:
    """Return what came of trying, or the class of the OSError it met."""
    shard = pb.ShardConfig(name="try", factory=what, options_json=json.dumps(arguments))
    described = (await handle.describe([shard], timeout_s=timeout_s)).shards[0]
    return described.error_class or described.description


Attempt = Callable[..., Awaitable[str]]


@pytest.fixture
async def attempt(site: Path) -> AsyncIterator[Attempt]:
    """Try something in a sandboxed trainer."""
    async with _running(_settings(site, SandboxMode.REQUIRED)) as handle:
        assert handle.weakness == ""

        async def attempt_it(what: str, **arguments: Any) -> str:
            return await _try(handle, what, **arguments)

        yield attempt_it


@pytest.mark.needs_bubblewrap
async def test_experiment_code_cannot_reach_a_listener_on_this_machine(attempt: Attempt, site: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # it does listen
        assert await attempt("connect", port=port) == "ConnectionRefusedError"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(site / "state/envoy.sock"))
        unix.listen()
        assert await attempt("connect_unix", path=str(site / "state/envoy.sock")) == "FileNotFoundError"


@pytest.mark.needs_bubblewrap
async def test_experiment_code_cannot_read_keys_state_home_or_the_log(attempt: Attempt, site: Path) -> None:
    for secret in (site / "pki/key.pem", site / "state/journal", site / "state/trainer.log", Path(__file__)):
        assert secret.exists()
        assert await attempt("read", path=str(secret)) in ("FileNotFoundError", "NotADirectoryError")
    assert await attempt("read", path="/etc/passwd") == "FileNotFoundError"
    assert json.loads(await attempt("listing", path=str(site))) == ["data", "state"]
    assert json.loads(await attempt("listing", path=str(site / "state"))) == ["bundle", "exchange", "workspace"]
    home = await attempt("listing", path=str(Path.home()))
    needed = {path for path in examine(Path(sys.executable)).readable if path.is_relative_to(Path.home())}
    visible = set() if home == "FileNotFoundError" else set(json.loads(home))
    assert visible <= {path.relative_to(Path.home()).parts[0] for path in needed}


@pytest.mark.needs_bubblewrap
async def test_experiment_code_sees_no_process_but_its_own(attempt: Attempt) -> None:
    pids = [name for name in json.loads(await attempt("listing", path="/proc")) if name.isdigit()]
    assert len(pids) == 2  # the sandbox's first process, and itself
    for file in ("environ", "mem", "maps"):
        assert await attempt("read", path=f"/proc/{os.getpid()}/{file}") == "FileNotFoundError"


@pytest.mark.needs_bubblewrap
async def test_experiment_code_writes_only_to_workspace_and_exchange(attempt: Attempt, site: Path) -> None:
    assert await attempt("write", path=str(site / "state/workspace/notes")) == "written"
    assert await attempt("write", path=str(site / "state/exchange/delta.bin")) == "written"
    assert (site / "state/exchange/delta.bin").read_text() == "written by the trainer"
    for forbidden in (site / "state/bundle/x.py", site / "data/patients.csv", Path(sys.prefix) / "lib/x.pth"):
        assert await attempt("write", path=str(forbidden)) == "OSError"  # read-only file system
    await attempt("write", path=str(site / "state/journal"))
    await attempt("write", path="/tmp/left-behind")
    assert (site / "state/journal").read_text() == "the envoy's state"
    assert "left-behind" not in os.listdir("/tmp")


@pytest.mark.needs_bubblewrap
async def test_experiment_code_gets_its_data_its_packages_and_its_own_temporary_folder(
    attempt: Attempt, site: Path
) -> None:
    assert await attempt("read", path=str(site / "data/patients.csv")) == "age,outcome"
    assert await attempt("importing", module="numpy") == "numpy"
    assert await attempt("write", path="/tmp/scratch") == "written"


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_of_ours_is_in_the_environment_or_the_open_files(
    site: Path, mode: SandboxMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVOY_DATABASE_PASSWORD", "hunter2")
    with (site / "pki/key.pem").open() as key:
        os.set_inheritable(key.fileno(), True)
        async with _running(_settings(site, mode, threads=2)) as handle:
            environment = json.loads(await _try(handle, "environment"))
            open_files = json.loads(await _try(handle, "descriptors"))
    assert "hunter2" not in environment.values()
    assert set(environment) <= {
        *("PATH", "HOME", "TMPDIR", "LANG", "USER", "LOGNAME", "PWD", "LC_CTYPE"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
    }
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["HOME"] == str(site / "state/workspace")
    assert [target.split(":")[0] for number, target in open_files.items() if int(number) > 2] == ["socket"]


@pytest.mark.needs_bubblewrap
async def test_a_renewed_key_stays_hidden_from_a_trainer_that_runs(site: Path) -> None:
    # The site's code lies beside its keys, as it will in many a silo.
    async with _running(_settings(site, SandboxMode.REQUIRED, python_path=(site,))) as handle:
        assert await _try(handle, "read", path=str(site / "pki/key.pem")) == "FileNotFoundError"
        (site / "pki/new.pem").write_text("the next private key")
        (site / "pki/new.pem").rename(site / "pki/key.pem")
        assert await _try(handle, "read", path=str(site / "pki/key.pem")) == "FileNotFoundError"
        assert await _try(handle, "read", path=str(site / "data/patients.csv")) == "age,outcome"


async def test_without_a_sandbox_the_weakness_is_real_and_said(site: Path) -> None:
    async with _running(_settings(site, SandboxMode.NONE)) as handle:
        assert "can read every file" in handle.weakness
        assert await _try(handle, "read", path=str(site / "pki/key.pem")) == "the site's private key"


@pytest.mark.parametrize("mode", MODES)
async def test_a_trainer_ends_cleanly_when_told_and_may_be_told_twice(site: Path, mode: SandboxMode) -> None:
    handle = TrainerHandle(_settings(site, mode))
    await handle.start()
    assert handle.is_alive
    assert (await handle.end()).code == 0
    assert not handle.is_alive
    assert (await handle.end()).code == 0
    with pytest.raises(TaskError, match="TrainerDied"):
        await _try(handle, "environment")


@pytest.mark.parametrize("mode", MODES)
async def test_experiment_code_that_fails_leaves_the_trainer_alive(site: Path, mode: SandboxMode) -> None:
    async with _running(_settings(site, mode)) as handle:
        with pytest.raises(TaskError) as caught:
            await handle.train(pb.RunTraining(round=1), timeout_s=30)
        assert caught.value.error_class == "ValueError"
        assert "Smith" not in str(caught.value) and "Smith" in caught.value.traceback
        assert await _try(handle, "environment")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("what", "arguments", "said"),
    [
        pytest.param("leave", {"code": 3}, "exit code 3", id="exit"),
        pytest.param("end_by", {"number": int(signal.SIGSEGV)}, "SIGSEGV", id="signal"),
    ],
)
async def test_a_trainer_that_dies_is_an_error_with_its_status_and_its_last_words_are_logged_only(
    site: Path, mode: SandboxMode, what: str, arguments: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with _running(_settings(site, mode)) as handle:
        with pytest.raises(TaskError) as caught:
            await _try(handle, what, **arguments)
        assert caught.value.error_class == "TrainerDied"
        assert said in caught.value.traceback
        if what == "end_by":
            assert "last words of the trainer" in caplog.text
            assert "last words" not in caught.value.traceback
        assert not handle.is_alive


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\xff\xff\xff\xff", id="oversized"),
        pytest.param("\0\0\0\x03\xff\xff\xff", id="malformed"),
        pytest.param("\0\0\0\x02\x08\x63", id="answer to another order"),
    ],
)
async def test_a_trainer_that_breaks_the_protocol_is_killed(site: Path, mode: SandboxMode, text: str) -> None:
    async with _running(_settings(site, mode)) as handle:
        with pytest.raises(TaskError) as caught:
            await _try(handle, "garbage", text=text)
        assert caught.value.error_class == "TrainerProtocol"
        assert not handle.is_alive
        assert (await handle.exited()).signal == signal.SIGKILL


async def test_a_trainer_that_misses_its_deadline_is_killed(site: Path) -> None:
    async with _running(_settings(site, SandboxMode.NONE)) as handle:
        await _try(handle, "environment")
        with pytest.raises(TaskError, match="TrainerTimeout"):
            await _try(handle, "hang", timeout_s=0.05)
        assert (await handle.exited()).signal == signal.SIGKILL


async def test_cancelling_an_order_kills_the_trainer(site: Path) -> None:
    fifo = _fifo(site)
    async with _running(_settings(site, SandboxMode.NONE)) as handle:
        await _try(handle, "hold", fifo=str(fifo[0]))
        order = asyncio.create_task(_try(handle, "hang"))
        await asyncio.sleep(0)
        order.cancel()
        with pytest.raises(asyncio.CancelledError):
            await order
        assert (await handle.exited()).signal == signal.SIGKILL
    os.close(fifo[1])


async def test_orders_given_at_once_are_carried_out_one_after_another(site: Path) -> None:
    async with _running(_settings(site, SandboxMode.NONE)) as handle:
        tries = [_try(handle, "read", path=str(site / "data/patients.csv")) for _ in range(5)]
        assert await asyncio.gather(*tries) == ["age,outcome"] * 5


async def test_limits_hold_in_the_trainer(site: Path) -> None:
    settings = _settings(site, SandboxMode.AUTO, limits=Limits(open_files=77))
    async with _running(settings) as handle:
        limits = await _try(handle, "read", path="/proc/self/limits")
    assert "77" in next(line for line in limits.splitlines() if line.startswith("Max open files"))


async def test_an_interpreter_that_does_not_exist_is_a_configuration_error(site: Path) -> None:
    handle = TrainerHandle(_settings(site, SandboxMode.NONE, interpreter=Path("/no/such/python")))
    with pytest.raises(ConfigurationError, match="/no/such/python"):
        await handle.start()
    assert not handle.is_alive


PARENT = """
import asyncio, json, sys
from pathlib import Path
from typing import Any
from federation.confinement.handle import TrainerHandle, TrainerSettings
from federation.confinement.sandbox import SandboxMode
from federation.v1 import trainer_pb2 as pb

async def main(site, mode, fifo):
    handle = TrainerHandle(TrainerSettings(
        name="t", folder=site / "state/trainer", log=site / "state/trainer.log", workspace=site / "state/workspace",
        exchange=site / "state/exchange", bundle=site / "state/bundle", sandbox=SandboxMode(mode),
        program=("-P", str(site / "state/bundle/stand_in_trainer.py"))))
    await handle.start()
    shards = [pb.ShardConfig(name="a", factory="hold", options_json=json.dumps({"fifo": fifo})),
              pb.ShardConfig(name="b", factory="hang")]
    await handle.describe(shards, timeout_s=None)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
"""


def _fifo(site: Path) -> tuple[Path, int]:
    """Make a named pipe where the trainer can write; return it and its read end."""
    path = site / "state/exchange/alive"
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    return path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)


async def _readable(descriptor: int) -> bytes:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 30)
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 100)


@pytest.mark.parametrize("mode", MODES)
async def test_a_trainer_dies_with_a_parent_that_is_killed(site: Path, mode: SandboxMode) -> None:
    path, read_end = _fifo(site)
    parent = await spawn(
        ChildSpec(
            name="parent",
            argv=[sys.executable, "-c", PARENT, str(site), mode.value, str(path)],
            env={"PATH": os.environ["PATH"]},
            cwd=site,
            log=site / "parent.log",
            folder=site / "parent",
        )
    )
    assert await _readable(read_end) == b"x"
    os.kill(parent.identity.pid, signal.SIGKILL)
    await parent.wait()
    assert await _readable(read_end) == b""  # the last writer, the trainer, is gone
    os.close(read_end)
