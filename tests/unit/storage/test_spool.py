"""The spool: resumed, reused, and never without what was admitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from federation.errors import DiskFullError, InvalidNameError, StorageError
from federation.names import Attempt, Digest, RoundNumber, SiteName
from federation.storage.spool import Spool, SpooledUpdate, UpdateKey
from federation.tensors.digest import payload_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUND = RoundNumber(3)
FIRST = Attempt(1)


def of(round_number: int = ROUND, attempt: int = FIRST) -> Callable[[UpdateKey], bool]:
    """Tell updates of one attempt from others."""
    return lambda key: (key.round, key.attempt) == (round_number, attempt)


def key(site: str = "alpha", round_number: int = 3, attempt: int = 1, update_id: bytes = b"id") -> UpdateKey:
    return UpdateKey(
        site=SiteName(site), round=RoundNumber(round_number), attempt=Attempt(attempt), update_id=update_id
    )


def fill(update: SpooledUpdate, *contents: bytes) -> list[Digest]:
    for payload, content in zip(update.payloads, contents, strict=True):
        payload.pwrite(0, content)
    return [payload_digest(content) for content in contents]


def admit_one(spool: Spool, site: str, content: bytes, round_number: int = 3, attempt: int = 1) -> SpooledUpdate:
    update = spool.begin(key(site, round_number, attempt), [len(content)], b"header of " + site.encode())
    spool.admit(update, fill(update, content), {"norm": 1.5})
    return update


def content_of(update: SpooledUpdate, index: int = 0) -> bytes:
    payload = update.payloads[index]
    content = bytearray(payload.nbytes)
    payload.pread_into(0, content)
    return bytes(content)


def records(folder: Path) -> list[bytes]:
    """What is on record as admitted."""
    contents = [path.read_bytes() for path in folder.glob("admitted-*")]
    return [content for content in contents if not content.startswith(b"-")]


def test_payloads_of_an_update_lie_side_by_side(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    update = spool.begin(key(), [4, 0, 3], b"header")
    fill(update, b"abcd", b"", b"xyz")
    assert [content_of(update, index) for index in range(3)] == [b"abcd", b"", b"xyz"]
    piece = bytearray(2)
    update.payloads[2].pread_into(1, piece)
    assert piece == b"yz"


def test_an_upload_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.begin(key(), [6], b"header").payloads[0].pwrite(0, b"abc")
    again = spool.begin(key(), [6], b"header")
    assert again.held == (3,)
    again.payloads[0].pwrite(3, b"def")
    assert content_of(again) == b"abcdef"


@pytest.mark.parametrize("other", [key(update_id=b"other"), key(attempt=2)], ids=["another id", "another attempt"])
def test_bytes_of_another_update_do_not_count(tmp_path: Path, other: UpdateKey) -> None:
    spool = Spool(tmp_path)
    spool.begin(key(), [6], b"header").payloads[0].pwrite(0, b"abc")
    assert spool.begin(other, [6], b"header").held == (0,)


def test_an_admitted_update_is_returned_to_whoever_sends_for_the_same_attempt(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    update = admit_one(spool, "alpha", b"abc")
    assert spool.begin(key(update_id=b"other"), [9], b"another") is update
    assert spool.admitted(ROUND) == [update]


def test_an_admitted_update_of_a_missed_attempt_is_replaced(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "alpha", b"abc")
    update = spool.begin(key(attempt=2), [3], b"header")
    assert not update.is_admitted
    assert spool.admitted(ROUND) == []
    assert records(tmp_path) == []


def test_admitting_twice_is_admitting_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    update = admit_one(spool, "alpha", b"abc")
    spool.admit(update, [], {})
    assert update.facts == {"norm": 1.5}


def test_an_update_that_is_not_whole_cannot_be_admitted(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    update = spool.begin(key(), [3], b"header")
    update.payloads[0].pwrite(0, b"ab")
    with pytest.raises(RuntimeError, match="not whole"):
        spool.admit(update, [Digest(bytes(32))], {})
    assert not update.is_admitted


@pytest.mark.parametrize("offset", [0, 2, 4], ids=["overlap", "overlap by one", "gap"])
def test_bytes_are_written_in_order_only(tmp_path: Path, offset: int) -> None:
    payload = Spool(tmp_path).begin(key(), [9], b"header").payloads[0]
    payload.pwrite(0, b"abc")
    with pytest.raises(ValueError, match="expected at 3"):
        payload.pwrite(offset, b"d")
    assert payload.received == 3


def test_no_payload_reaches_into_its_neighbour(tmp_path: Path) -> None:
    update = Spool(tmp_path).begin(key(), [2, 2], b"header")
    with pytest.raises(ValueError, match="up to 2"):
        update.payloads[0].pwrite(0, b"abc")
    with pytest.raises(StorageError, match="past the 2 bytes"):
        update.payloads[0].pread_into(1, bytearray(2))


def test_admitted_updates_come_in_name_order_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for site in ("gamma", "alpha", "beta"):
        admit_one(spool, site, site.encode())
    assert [update.key.site for update in spool.admitted(ROUND)] == ["alpha", "beta", "gamma"]


def test_files_are_used_again_and_never_grow_in_number(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(1, 6):
        for site in ("alpha", "beta"):
            admit_one(spool, site, bytes(1000), number)
        spool.release(RoundNumber(number))
    assert len(list(tmp_path.glob("slot-*"))) == 2
    assert records(tmp_path) == []
    spool.close()
    reopened = Spool(tmp_path)
    reopened.begin(key(), [1000], b"header")
    assert len(list(tmp_path.glob("slot-*"))) == 2


def test_a_restart_finds_what_was_admitted_and_drops_what_was_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "beta", b"beta's")
    admit_one(spool, "alpha", b"alpha's")
    spool.begin(key("gamma"), [3], b"header").payloads[0].pwrite(0, b"ab")
    spool.close()
    again = Spool(tmp_path)
    found = again.recover(of())
    assert [update.key.site for update in found] == ["alpha", "beta"]
    assert [content_of(update) for update in found] == [b"alpha's", b"beta's"]
    assert [update.header for update in found] == [b"header of alpha", b"header of beta"]
    assert found[0].facts == {"norm": 1.5}
    assert found[0].is_admitted
    assert again.begin(key("gamma"), [3], b"header").held == (0,)
    assert [content_of(update) for update in again.admitted(ROUND)] == [b"alpha's", b"beta's"]


@pytest.mark.parametrize(("round_number", "attempt"), [(4, 1), (2, 1), (3, 2)], ids=["later", "earlier", "attempt"])
def test_a_restart_in_another_round_or_attempt_drops_the_records(
    tmp_path: Path, round_number: int, attempt: int
) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "alpha", b"abc")
    spool.close()
    assert Spool(tmp_path).recover(of(round_number, attempt)) == []
    assert records(tmp_path) == []


def damage_data(folder: Path) -> None:
    with open(folder / "slot-0000.bin", "r+b") as file:
        file.write(b"X")


def truncate_data(folder: Path) -> None:
    os.truncate(folder / "slot-0000.bin", 1)


def remove_data(folder: Path) -> None:
    (folder / "slot-0000.bin").unlink()


def damage_record(folder: Path) -> None:
    next(folder.glob("admitted-*")).write_text("{")


def tear_record(folder: Path) -> None:
    path = next(folder.glob("admitted-*"))
    os.truncate(path, path.stat().st_size // 2)


def forge_record(folder: Path) -> None:
    path = next(folder.glob("admitted-*"))
    text = json.dumps({**json.loads(path.read_bytes()[9:]), "site": "../alpha"}).encode()
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))


@pytest.mark.parametrize(
    "damage",
    [damage_data, truncate_data, remove_data, damage_record, tear_record, forge_record],
    ids=lambda each: each.__name__,
)
def test_a_record_whose_bytes_did_not_survive_does_not_count(tmp_path: Path, damage) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "alpha", b"abc")
    spool.close()
    damage(tmp_path)
    assert Spool(tmp_path).recover(of()) == []


def test_a_process_killed_right_after_admission_loses_nothing(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from federation.storage.spool import Spool, UpdateKey
from federation.tensors.digest import payload_digest
spool = Spool(Path({str(tmp_path)!r}))
for site in ("alpha", "beta"):
    update = spool.begin(UpdateKey(site=site, round=3, attempt=1, update_id=b"id"), [5], b"header")
    update.payloads[0].pwrite(0, b"12345" if site == "alpha" else b"12")  # beta is cut
    if site == "alpha":
        spool.admit(update, [payload_digest(b"12345")], {{}})
os.kill(os.getpid(), signal.SIGKILL)
""".replace('b"12345" if site == "alpha" else b"12"', 'b"12345"[: 5 if site == "alpha" else 2]')
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert [content_of(update) for update in Spool(tmp_path).recover(of())] == [b"12345"]


def test_a_record_that_is_shorter_than_the_one_before_it_is_found(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    update = spool.begin(key(), [3], b"long header" * 100)
    spool.admit(update, fill(update, b"abc"), {"norm": 1.5})
    spool.release(ROUND)
    admit_one(spool, "alpha", b"of round 4", 4)
    spool.close()
    assert [content_of(update) for update in Spool(tmp_path).recover(of(4))] == [b"of round 4"]


def test_of_two_records_for_one_task_one_counts_and_the_other_makes_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "alpha", b"abc")
    admit_one(spool, "beta", b"xyz")
    spool.close()
    for suffix, source in (("bin", "slot"), ("", "admitted")):  # as if forgetting the first had not reached the disk
        first, second = (tmp_path / f"{source}-000{index}{suffix and '.'}{suffix}" for index in (0, 1))
        second.write_bytes(first.read_bytes())
    again = Spool(tmp_path)
    assert [content_of(update) for update in again.recover(of())] == [b"abc"]
    admit_one(again, "beta", b"xyz")
    assert len(list(tmp_path.glob("slot-*"))) == 2


def test_updates_come_from_one_thread_while_another_makes_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    rounds = range(1, 60)
    with ThreadPoolExecutor(1) as disk:
        for number in rounds:
            releasing = disk.submit(spool.release, RoundNumber(number - 1))
            for site in ("alpha", "beta", "gamma"):
                admit_one(spool, site, b"%d" % number, number)
            assert [content_of(update) for update in spool.admitted(RoundNumber(number))] == [b"%d" % number] * 3
            releasing.result()
    assert len(records(tmp_path)) == 3


def test_updates_of_several_rounds_lie_side_by_side_and_what_is_not_kept_makes_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "alpha", b"of round 3")
    admit_one(spool, "beta", b"of round 5", round_number=5)
    spool.begin(key("gamma", 4), [3], b"header").payloads[0].pwrite(0, b"ab")
    spool.release_others(lambda each: each.site == "beta")
    spool.close()
    again = Spool(tmp_path)
    assert [update.key.round for update in again.recover(lambda each: True)] == [5]
    assert len(list(tmp_path.glob("slot-*.bin"))) == 3, "files are reused, not given back"
    again.begin(key("alpha", 6), [3], b"header")
    again.begin(key("gamma", 6), [3], b"header")
    assert len(list(tmp_path.glob("slot-*.bin"))) == 3


def test_who_still_holds_a_forgotten_update_cannot_touch_the_one_that_has_its_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    old = spool.begin(key("alpha"), [3, 3], b"header")
    old.payloads[0].pwrite(0, b"old")
    spool.discard(old)
    new = admit_one(spool, "beta", b"honest")
    assert len(list(tmp_path.glob("slot-*.bin"))) == 1
    for touch in (
        lambda: old.payloads[1].pwrite(0, b"bad"),
        lambda: old.payloads[0].pread_into(0, bytearray(3)),
        lambda: spool.admit(old, [], {}),
    ):
        with pytest.raises(RuntimeError, match="forgotten"):
            touch()
    spool.release(ROUND)
    with pytest.raises(RuntimeError, match="forgotten"):
        spool.admit(new, [], {})


def test_site_names_that_are_no_names_never_reach_a_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        Spool(tmp_path).begin(key("../../etc"), [1], b"header")


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from federation.errors import DiskFullError
from federation.storage.spool import Spool, UpdateKey
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
spool = Spool(Path(sys.argv[1]))
assert len(spool.recover(lambda key: (key.round, key.attempt) == (3, 1))) == 1
try:
    spool.begin(UpdateKey(site="beta", round=3, attempt=1, update_id=b"id"), [2 << 20], b"header")
except DiskFullError as error:
    print(json.dumps([str(error.path), error.needed_bytes, error.free_bytes, str(error), len(spool.admitted(3))]))
small = spool.begin(UpdateKey(site="gamma", round=3, attempt=1, update_id=b"id"), [1000], b"header")
small.payloads[0].pwrite(0, bytes(1000))
"""


def test_a_file_that_may_not_grow_refuses_the_update_and_keeps_the_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    admit_one(spool, "alpha", b"abc")
    spool.close()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], check=True, capture_output=True, text=True)
    path, needed, free, text, admitted = json.loads(done.stdout)
    assert path.startswith(str(tmp_path))
    assert needed == 2 << 20
    assert f"{needed} bytes" in text
    assert f"{free} are free" in text
    assert admitted == 1
    assert [content_of(update) for update in Spool(tmp_path).recover(of())] == [b"abc"]


@pytest.fixture
def tiny_disk(tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("this user may not mount a tmpfs; the file size limit of the test above stands in for it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_under_the_spool_refuses_the_update_and_keeps_the_others(tiny_disk: Path) -> None:
    spool = Spool(tiny_disk)
    update = admit_one(spool, "alpha", bytes(range(256)) * 1000)
    with pytest.raises(DiskFullError, match="no room for 2000000 bytes") as caught:
        spool.begin(key("beta"), [2_000_000], b"header")
    assert caught.value.needed_bytes == 2_000_000
    assert 0 <= caught.value.free_bytes < 1 << 20
    assert content_of(update) == bytes(range(256)) * 1000
    small = admit_one(spool, "gamma", b"still fits")
    assert content_of(small) == b"still fits"
    spool.close()
    again = Spool(tiny_disk)
    assert len(again.recover(of())) == 2
    again.close()
