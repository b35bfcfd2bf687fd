"""Real child processes: started, limited, watched, stopped, adopted, and gone with a parent that was killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError
from federation.runtime import children
from federation.runtime.children import Child, ChildSpec, ExitStatus, Limits, ProcessIdentity, adopt, spawn

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = {"PATH": os.environ["PATH"]}
RECORD = json.dumps({"outcome": "failed", "error_class": "KeyError", "reason": "patient 17", "at": 1.0})
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
)


def _spec(base: Path, code: str, /, **changes: object) -> ChildSpec:
    arguments: dict[str, object] = {
        "name": "child",
        "argv": [sys.executable, "-I", "-S", "-c", code],
        "env": ENVIRONMENT,
        "cwd": base,
        "log": base / "child.log",
        "folder": base / "child",
    }
    return ChildSpec(**{**arguments, **changes})  # type: ignore[arg-type]


async def _ended(child: Child) -> ExitStatus:
    return await asyncio.wait_for(child.wait(), 60)


async def _until_it_says(read_end: int) -> bytes:
    """Return the next bytes from a pipe, without blocking the loop; b"" once every writer is gone."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(read_end, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 60)
    finally:
        loop.remove_reader(read_end)
    return os.read(read_end, 4096)


async def test_a_child_reads_nothing_logs_to_its_file_and_leads_its_own_session(tmp_path: Path) -> None:
    code = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid(), sorted(os.environ)); sys.exit(3)"
    status = await _ended(await spawn(_spec(tmp_path, code)))
    assert (status.code, status.signal, status.record) == (3, None, None)
    # LC_CTYPE is Python's own doing where no language is set.
    assert (tmp_path / "child.log").read_text().replace("'LC_CTYPE', ", "") == "'' True ['PATH']\n"


async def test_a_child_that_had_no_room_for_its_record_ended_for_a_known_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    status = await _ended(await spawn(_spec(tmp_path, "raise SystemExit(120)")))
    assert status.full_disk == tmp_path / "child"
    leaves_word = f"import pathlib; pathlib.Path({str(tmp_path / 'child' / 'exit.json')!r}).write_text({RECORD!r})"
    assert (await _ended(await spawn(_spec(tmp_path, leaves_word)))).full_disk is None


async def test_a_child_inherits_only_the_descriptors_it_was_given(tmp_path: Path) -> None:
    given, other = os.pipe()
    try:
        code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
        await _ended(await spawn(_spec(tmp_path, code, pass_fds=(given,))))
    finally:
        os.close(given)
        os.close(other)
    inherited = json.loads((tmp_path / "child.log").read_text())
    assert given in inherited and other not in inherited
    assert len(inherited) == 5  # three standard ones, the one given, and the listing's own


async def test_limits_hold_in_the_child_and_core_files_are_off(tmp_path: Path) -> None:
    code = (
        "import resource as r\n"
        "print([r.getrlimit(k)[0] for k in (r.RLIMIT_DATA, r.RLIMIT_NOFILE, r.RLIMIT_CPU, r.RLIMIT_CORE)])\n"
        "try: bytearray(400_000_000)\n"
        "except MemoryError: print('refused')"
    )
    limits = Limits(memory_bytes=200_000_000, open_files=64, cpu_s=30)
    spec = _spec(tmp_path, code, argv=[sys.executable, "-c", code], limits=limits)
    assert (await _ended(await spawn(spec))).code == 0
    assert (tmp_path / "child.log").read_text() == "[200000000, 64, 30, 0]\nrefused\n"


async def test_the_exit_record_the_child_wrote_is_in_its_status_and_an_older_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "child"
    folder.mkdir()
    children.write_exit_record(folder, children.ExitRecord(outcome="old", at=1.0))
    silent = await _ended(await spawn(_spec(tmp_path, "")))
    assert silent.record is None
    code = f"""
from pathlib import Path
from federation.runtime.children import ExitRecord, write_exit_record
write_exit_record(Path({str(folder)!r}), ExitRecord(outcome="failed", error_class="StorageError", reason="full", at=2))
raise SystemExit(1)
"""
    talking = await _ended(await spawn(_spec(tmp_path, code, argv=[sys.executable, "-c", code])))
    assert str(talking) == "exit code 1 (failed: StorageError: full)"


async def test_a_program_that_does_not_exist_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no-such-program"):
        await spawn(_spec(tmp_path, "", argv=["no-such-program"]))


async def test_stop_asks_first_and_kills_after_the_grace(tmp_path: Path) -> None:
    polite = await spawn(_spec(tmp_path, "import signal; signal.pause()", folder=tmp_path / "polite"))
    assert (await polite.stop(60)).signal == signal.SIGTERM
    read_end, write_end = os.pipe()
    code = STUBBORN.replace("print('ready', flush=True)", f"import os; os.write({write_end}, b'x')")
    stubborn = await spawn(_spec(tmp_path, code, folder=tmp_path / "stubborn", pass_fds=(write_end,)))
    os.close(write_end)
    assert await _until_it_says(read_end) == b"x"
    assert (await stubborn.stop(0.05)).signal == signal.SIGKILL
    os.close(read_end)
    assert not stubborn.is_running


async def test_what_a_child_started_in_its_group_dies_with_it(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    code = f"import os, signal\nif os.fork() == 0: os.write({write_end}, b'x'); signal.pause()\nsignal.pause()"
    child = await spawn(_spec(tmp_path, code, pass_fds=(write_end,)))
    os.close(write_end)
    assert await _until_it_says(read_end) == b"x"
    os.kill(child.identity.pid, signal.SIGKILL)
    await _ended(child)
    assert await _until_it_says(read_end) == b""  # the grandchild held the last other end
    os.close(read_end)


async def test_many_may_wait_and_one_that_gives_up_disturbs_none(tmp_path: Path) -> None:
    child = await spawn(_spec(tmp_path, "import signal; signal.pause()"))
    impatient, patient = asyncio.create_task(child.wait()), asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    impatient.cancel()
    child.kill()
    assert (await asyncio.wait_for(patient, 60)).signal == signal.SIGKILL
    assert (await child.wait()).signal == signal.SIGKILL


async def test_a_cancelled_stop_leaves_nothing_running(tmp_path: Path) -> None:
    child = await spawn(_spec(tmp_path, STUBBORN))
    stopping = asyncio.create_task(child.stop(60))
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    await _ended(child)


async def test_nothing_is_adopted_where_nothing_runs(tmp_path: Path) -> None:
    assert adopt(tmp_path / "never") is None
    child = await spawn(_spec(tmp_path, ""))
    await _ended(child)
    assert adopt(child.folder) is None
    stranger = ProcessIdentity(pid=os.getpid(), start_ticks=1, boot_id=child.identity.boot_id)
    (child.folder / "process.json").write_text(stranger.to_json())
    assert adopt(child.folder) is None


PARENT = """
import asyncio, os, sys
from pathlib import Path
from federation.runtime.children import ChildSpec, spawn

async def main(folder, code, dies, pipe):
    spec = ChildSpec(name="child", argv=[sys.executable, "-c", code], env=dict(os.environ), cwd=folder,
                     log=folder / "child.log", folder=folder / "child", pass_fds=(pipe,), dies_with_parent=dies)
    await spawn(spec)
    await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "dies", int(sys.argv[4])))
"""


async def _killed_parent(folder: Path, code: str, dies: str) -> int:
    """Start a parent with a child that writes into a pipe, then kill -9 the parent; return the pipe's read end."""
    read_end, write_end = os.pipe()
    parent = await spawn(
        _spec(
            folder,
            "",
            argv=[sys.executable, "-c", PARENT, str(folder), code.format(pipe=write_end), dies, str(write_end)],
            folder=folder / "parent",
            log=folder / "parent.log",
            pass_fds=(write_end,),
        )
    )
    os.close(write_end)
    assert await _until_it_says(read_end) == b"x", (folder / "parent.log").read_text()
    os.kill(parent.identity.pid, signal.SIGKILL)
    await _ended(parent)
    return read_end


async def test_a_child_that_dies_with_its_parent_does_so_after_kill_9(tmp_path: Path) -> None:
    read_end = await _killed_parent(tmp_path, "import os, signal; os.write({pipe}, b'x'); signal.pause()", "dies")
    assert await _until_it_says(read_end) == b""
    os.close(read_end)


async def test_a_child_of_a_killed_parent_is_adopted_and_its_own_record_says_how_it_ended(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from federation.runtime.children import ExitRecord, write_exit_record
def drain(*_):
    write_exit_record(Path("child"), ExitRecord(outcome="drained", at=1.0))
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
os.write({pipe}, b"x")
while True:
    signal.pause()
"""
    read_end = await _killed_parent(tmp_path, code, "stays")
    child = adopt(tmp_path / "child")
    assert child is not None and child.is_running
    status = await child.stop(60)
    assert (status.code, status.signal) == (None, None)
    assert status.record is not None and status.record.outcome == "drained"
    os.close(read_end)


async def test_a_released_child_goes_on_and_can_be_adopted(tmp_path: Path) -> None:
    child = await spawn(_spec(tmp_path, "import signal; signal.pause()"))
    child.release()
    again = adopt(child.folder)
    assert again is not None and again.identity == child.identity
    again.kill()
    await _ended(again)
    # Still a child of this process, so somebody has to reap it; it has ended, so that does not block.
    os.waitpid(child.identity.pid, 0)  # noqa: ASYNC222
