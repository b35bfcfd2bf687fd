"""Log files: bounded, whole lines, read on from where one stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from director.logs import LogFolder, LogReader

if TYPE_CHECKING:
    from pathlib import Path


async def read(reader: LogReader, *, to_end: bool = False) -> list[str]:
    return [line async for lines in reader.read(to_end=to_end) for line in lines]


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
