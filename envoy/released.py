"""Which lines of a trainer's log leave the site, if its policy releases any: whole ones, in order, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINE_CHARACTERS = 2000
MAX_BYTES_AT_ONCE = 256 * 1024


def read_new(path: Path, offset: int) -> tuple[list[str], int]:
    """Return the whole lines after `offset`, at most 256 KiB of them, and the offset after them.

    Args:
        path: the trainer's log; may not exist yet.
        offset: bytes released before.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(MAX_BYTES_AT_ONCE)
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == MAX_BYTES_AT_ONCE:
        end = len(data)  # one endless line: cut it rather than stop releasing
    lines = data[:end].decode(errors="replace").splitlines()
    return [line[:MAX_LINE_CHARACTERS] for line in lines], offset + end
