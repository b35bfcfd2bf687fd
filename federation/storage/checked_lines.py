"""Lines behind their CRC-32, 8 hex digits and a space: one that was torn by a crash or a power loss shows it."""

from __future__ import annotations

import zlib


def checked(text: bytes) -> bytes:
    """Return a line that says whether it is whole, without an end."""
    return b"%08x %s" % (zlib.crc32(text), text)


def text_of(line: bytes) -> bytes | None:
    """Return the text of a line that `checked` made, given without its end; None if it is another."""
    text = line[9:]
    return text if line[:9] == b"%08x " % zlib.crc32(text) else None
