"""Log files: bounded, whole lines, read on from where one stopped."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from director.logs import LogFolder, LogReader
from federation.errors import ConflictError


async def read(reader: LogReader, *, to_end: bool = False) -> list[str]:
    return [line async for batch in reader.read(to_end=to_end) for line in batch.lines]


async def test_a_reader_goes_on_where_it_stopped_and_keeps_half_lines_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path)
    assert await read(reader) == []  # not there yet
    path.write_bytes(b"one\ntw")
    assert await read(reader) == ["one"]
    with path.open("ab") as file:
        file.write(b"o\nthree")
    assert await read(reader) == ["two"]
    assert await read(reader, to_end=True) == ["three"]


async def test_bytes_that_are_no_text_are_shown_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe ok\n")
    assert await read(LogReader(path)) == ["\ufffd\ufffd ok"]


async def test_a_line_without_end_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 1_000_000)
    lines = await read(LogReader(path), to_end=True)
    assert lines
    assert all(len(line) <= 4096 for line in lines)


async def test_released_lines_are_kept_up_to_their_bound_and_then_say_so_once(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path, 200)
    for _ in range(50):
        await folder.append("trial", "north", ["0123456789"])
    path = folder.path("trial", "north")
    assert path.stat().st_size <= 260
    lines = await read(LogReader(path), to_end=True)
    assert lines[0] == "0123456789"
    assert [line.strip() for line in lines].count("(the director keeps no more lines of this site)") == 1


async def test_a_line_break_inside_a_released_line_cannot_forge_another(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path, 1000)
    await folder.append("trial", "north", ["a\nb\rc"])
    assert await read(LogReader(folder.path("trial", "north"))) == ["a b c"]


@given(lines=st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line), max_size=1200), torn=st.binary())
@example(lines=[b"x" * 600_000, b"after"], torn=b"")
@example(lines=[b"1"] * 1100, torn=b"half")
async def test_a_reader_that_begins_at_any_cursor_misses_and_repeats_nothing(lines: list[bytes], torn: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(b"".join(line + b"\n" for line in lines) + torn)
        whole = [batch async for batch in LogReader(path).read(to_end=True)]
        size = path.stat().st_size
        for at, batch in enumerate(whole):
            rest = await read(LogReader(path, cursor=batch.cursor), to_end=True)
            assert rest == [line for later in whole[at + 1 :] for line in later.lines]
    assert (whole[-1].cursor if whole else 0) == size


async def test_half_a_line_is_not_before_the_cursor(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    (batch,) = [batch async for batch in LogReader(path).read(to_end=False)]
    assert (batch.lines, batch.cursor) == (["one"], 4)
    path.write_bytes(b"one\ntwo\n")
    assert await read(LogReader(path, cursor=batch.cursor)) == ["two"]


@pytest.mark.parametrize("cursor", [5, 2**64 - 1])
async def test_a_log_shorter_than_what_was_read_of_it_is_refused(tmp_path: Path, cursor: int) -> None:
    path = tmp_path / "aggregator.log"
    with pytest.raises(ConflictError, match=rf"has 0 bytes, and {cursor} were read"):
        await read(LogReader(path, cursor=cursor))
    path.write_bytes(b"one\n")
    with pytest.raises(
        ConflictError, match=rf"has 4 bytes, and {cursor} were read: it was cut at the director; read it"
    ):
        await read(LogReader(path, cursor=cursor))


async def test_a_log_that_is_cut_while_it_is_followed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    reader = LogReader(path)
    assert await read(reader) == ["one", "two"]
    path.write_bytes(b"new\n")
    with pytest.raises(ConflictError):
        await read(reader)
