from __future__ import annotations

import pytest

from federation.bundle import NonceLedger
from federation.errors import BundleError, StorageError
from federation.names import ExperimentId

FIRST, SECOND = ExperimentId("trial-aaaaaaaa"), ExperimentId("trial-bbbbbbbb")


def test_a_replayed_nonce_is_refused_also_after_a_restart(tmp_path) -> None:
    ledger = NonceLedger(tmp_path / "nonces", now=0)
    ledger.accept("aa", experiment=FIRST, not_after=100)
    for again in (ledger, NonceLedger(tmp_path / "nonces", now=50)):
        with pytest.raises(BundleError, match="used before"):
            again.accept("aa", experiment=SECOND, not_after=100)


def test_the_same_experiment_may_take_the_step_again(tmp_path) -> None:
    NonceLedger(tmp_path / "nonces", now=0).accept("aa", experiment=FIRST, not_after=100)
    again = NonceLedger(tmp_path / "nonces", now=0)
    again.accept("aa", experiment=FIRST, not_after=100)
    assert "aa" in again


def test_an_expired_nonce_is_forgotten_because_expiry_refuses_it(tmp_path) -> None:
    NonceLedger(tmp_path / "nonces", now=0).accept("aa", experiment=FIRST, not_after=100)
    assert "aa" in NonceLedger(tmp_path / "nonces", now=100)
    assert "aa" not in NonceLedger(tmp_path / "nonces", now=101)


def test_a_line_torn_by_a_crash_never_counted(tmp_path) -> None:
    path = tmp_path / "nonces"
    NonceLedger(path, now=0).accept("aa", experiment=FIRST, not_after=100)
    path.write_text(path.read_text() + "bb trial-bbb")
    ledger = NonceLedger(path, now=0)
    assert "aa" in ledger
    assert "bb" not in ledger
    ledger.accept("cc", experiment=SECOND, not_after=100)
    assert "cc" in NonceLedger(path, now=0)


def test_a_line_broken_in_the_middle_is_an_error_not_a_forgotten_nonce(tmp_path) -> None:
    path = tmp_path / "nonces"
    path.write_text("aa trial-aaaaaaaa\nbb trial-bbbbbbbb 100.0\n")
    with pytest.raises(StorageError, match="makes no sense"):
        NonceLedger(path, now=0)


def test_a_nonce_that_cannot_be_written_is_not_accepted(tmp_path) -> None:
    ledger = NonceLedger(tmp_path / "nonces", now=0)
    (tmp_path / "nonces").unlink()
    with pytest.raises(StorageError):
        ledger.accept("aa", experiment=FIRST, not_after=100)
    assert "aa" not in ledger
