from __future__ import annotations

from typing import TYPE_CHECKING

from envoy.released import MAX_BYTES_AT_ONCE, read_new

if TYPE_CHECKING:
    from pathlib import Path


def test_a_log_that_does_not_exist_gives_nothing(tmp_path: Path) -> None:
    assert read_new(tmp_path / "none.log", 0) == ([], 0)


def test_an_unfinished_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    log.write_bytes(b"one\ntw")
    lines, offset = read_new(log, 0)
    assert lines == ["one"]
    log.write_bytes(b"one\ntwo\n")
    assert read_new(log, offset) == (["two"], 8)


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    log.write_bytes(b"x" * (MAX_BYTES_AT_ONCE + 5))
    lines, offset = read_new(log, 0)
    assert len(lines) == 1
    assert offset == MAX_BYTES_AT_ONCE
