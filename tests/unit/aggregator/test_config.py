"""The file the director writes."""

from __future__ import annotations

import json

import pytest

from federation.aggregator.config import AggregatorConfig
from federation.errors import ConfigurationError

GOOD = {
    "federation": "test",
    "experiment": "x-00000001",
    "epoch": 1,
    "folder": "/somewhere",
    "tls": None,
    "director_address": "127.0.0.1:7000",
}


def test_what_was_written_is_read_back(tmp_path):
    config = AggregatorConfig(**GOOD, ports=(7100, 7200), advertised_host="example.org")
    path = tmp_path / "aggregator.json"
    path.write_text(config.model_dump_json())
    assert AggregatorConfig.read(path) == config


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"experiment": "../x"},
        {"federation": "Test"},
        {"ports": (7200, 7100)},
        {"ports": (0, 7100)},
        {"orphan_s": 0},
        {"typo": 1},
        {"roster": [{"site": "a/b", "train_examples": 1, "validation_examples": 0}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_is_refused_with_the_field(tmp_path, change):
    path = tmp_path / "aggregator.json"

    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ConfigurationError, match=r"aggregator\.json"):
        AggregatorConfig.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere"):
        AggregatorConfig.read(tmp_path / "nowhere.json")
