"""Buffers whose bytes lie here and there in another one, held against the bytes themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import StorageError
from federation.storage.memory import MemoryBytes
from federation.storage.tile_streams import Places, Scattered

WHOLE = bytes(range(100))


@given(
    pieces=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 20)), max_size=8),
    ends=st.tuples(st.integers(0, 160), st.integers(0, 160)),
)
def test_any_range_is_that_of_the_pieces_put_together(pieces: list[tuple[int, int]], ends: tuple[int, int]) -> None:
    together = b"".join(WHOLE[place : place + nbytes] for place, nbytes in pieces)
    scattered = Scattered(MemoryBytes(WHOLE), Places(pieces), "a buffer")
    assert scattered.nbytes == len(together)
    first, last = sorted(min(end, len(together)) for end in ends)
    found = bytearray(last - first)
    scattered.pread_into(first, found)
    assert found == together[first:last]


def test_a_range_past_the_end_is_refused() -> None:
    scattered = Scattered(MemoryBytes(WHOLE), Places([(50, 10), (0, 5)]), "a buffer")
    with pytest.raises(StorageError, match="read past the 15 bytes of a buffer"):
        scattered.pread_into(10, bytearray(6))
