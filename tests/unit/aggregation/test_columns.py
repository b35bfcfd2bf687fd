"""A pass: how many threads it has, which is a question of memory."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from federation.aggregation import columns
from federation.aggregation.columns import columns_of_piece, map_columns, threads_for
from federation.aggregation.tiles import Array, Tile, tiles_of
from federation.names import SiteName
from federation.tensors import DType, TensorSchema, TensorSpec

ROOM = 128 << 20


class Zeros:
    """Updates of zeros, that are nowhere in memory, and who read them. Implements `TileSource`."""

    def __init__(self, sites: int, elements: int) -> None:
        self.sites = [SiteName(f"site-{number}") for number in range(sites)]
        self.weights = [1.0] * sites
        self.tiles = tiles_of(
            TensorSchema.of([TensorSpec(name="w", dtype=DType.FLOAT32, shape=(elements,))]), floats=True
        )
        self.readers: set[int] = set()

    def read(self, site: int, tile: Tile, out: Array) -> None:
        self.readers.add(threading.get_ident())
        out[...] = 0.0


@pytest.mark.parametrize("sites", [1, 2, 4, 7, 20, 33, 500])
def test_a_machine_of_many_cores_takes_no_more_threads_than_there_is_room_for(
    sites: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "cores", lambda: 1000)
    rows = 4 * sites * columns_of_piece(sites)
    assert threads_for(sites) * 3 * rows <= ROOM < (threads_for(sites) + 1) * 3 * rows


def test_two_cores_are_used_however_many_sites_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "cores", lambda: 2)
    assert threads_for(1_000_000) == 2


def test_a_pass_that_is_told_no_number_of_threads_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "cores", lambda: 64)
    source = Zeros(33, 4_000_000)
    for _ in map_columns(source, lambda rows, out, scratch: np.copyto(out, rows[0])):
        pass
    assert 1 <= len(source.readers) <= threads_for(33) < 64
