"""Versions of the model: kept on disk and on offer as long as somebody trains from them, and no longer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from federation.aggregator.broadcast import Offers
from federation.aggregator.versions import Versions
from federation.errors import NotFoundError
from federation.names import PayloadName, RoundNumber
from federation.storage.safetensors_files import ModelFile, ModelWriter
from federation.telemetry.metrics import Metrics
from federation.testing.aggregators import flat_schema
from federation.wire.payloads import MODEL, OPTIMIZER, Payload

SCHEMA = flat_schema(4)
ONE, TWO, THREE = map(RoundNumber, (1, 2, 3))


@pytest.fixture
def offers():
    with ThreadPoolExecutor(1) as pool:
        yield Offers(pool, Metrics())


def commit(folder, value):
    """Write the model, as a commit does, and return its payload."""
    path = folder / "model.safetensors"
    with ModelWriter(path, SCHEMA, in_place=True) as writer:
        writer.append(np.full(4, value, np.float32).tobytes())
        digest = writer.commit()
    return Payload(name=MODEL, schema_digest=SCHEMA.digest, encoded_bytes=16, digest=digest), path


def value_of(path):
    with ModelFile.open(path) as model:
        return np.frombuffer(model.pread(0, 16), np.float32)[0]


def test_a_version_outlives_the_commits_after_it_until_nobody_needs_it(tmp_path, offers):
    versions = Versions(tmp_path / "versions", offers)
    for number, value in ((ONE, 1.0), (TWO, 2.0), (THREE, 3.0)):
        versions.add(number, versions.link(number, [commit(tmp_path, value)]))
    assert [value_of(versions.model_path(number)) for number in (ONE, TWO, THREE)] == [1.0, 2.0, 3.0]
    first = versions.digest(ONE)
    assert first is not None and offers.find(first).inline == np.ones(4, np.float32).tobytes()
    versions.retire({TWO, THREE})
    assert ONE not in versions and versions.digest(ONE) is None and versions.model_path(ONE).exists()
    with pytest.raises(NotFoundError):
        offers.find(first)
    versions.unlink({TWO, THREE})
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == [
        "00000002-model.safetensors", "00000003-model.safetensors",
    ]  # fmt: skip
    assert value_of(versions.model_path(TWO)) == 2.0
    offers.close()


def test_a_restart_finds_what_is_all_there(tmp_path, offers):
    earlier = Versions(tmp_path / "versions", offers)
    for offer in earlier.link(ONE, [commit(tmp_path, 1.0)]):
        offer.retire()
    versions = Versions(tmp_path / "versions", offers)
    (found,) = versions.find(ONE, [MODEL, OPTIMIZER])
    assert found.inline == np.ones(4, np.float32).tobytes()
    found.retire()
    assert versions.find(TWO, [MODEL, OPTIMIZER]) == []
    # Nobody was asked with it: the process was killed in between. It is made anew.
    commit(tmp_path, 5.0)
    for offer in versions.link(ONE, [commit(tmp_path, 6.0)]):
        offer.retire()
    assert value_of(versions.model_path(ONE)) == 6.0


def test_a_version_without_all_that_the_method_sends_is_none_but_for_the_optimizer_state(tmp_path, offers):
    versions = Versions(tmp_path / "versions", offers)
    payload, path = commit(tmp_path, 1.0)
    for offer in versions.link(ONE, [(payload, path)]):
        offer.retire()
    control = PayloadName("control")
    assert versions.find(ONE, [MODEL, OPTIMIZER, control]) == []
    for offer in versions.link(ONE, [(payload, path), (replace(payload, name=control), path)]):
        offer.retire()
    found = versions.find(ONE, [MODEL, OPTIMIZER, control])
    assert [offer.payload.name for offer in found] == [MODEL, control]
    for offer in found:
        offer.retire()


def test_nothing_is_removed_where_nothing_was_kept(tmp_path, offers):
    Versions(tmp_path / "versions", offers).unlink(())
    assert not (tmp_path / "versions").exists()
