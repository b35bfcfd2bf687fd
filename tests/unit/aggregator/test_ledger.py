"""What the journal says after a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from federation.aggregator.ledger import Ledger, Overlap, Settled
from federation.errors import ConflictError, StorageError
from federation.names import Attempt, Digest, Epoch, RoundNumber, SiteName
from federation.rounds.events import Finish, Progress, Score, Standing
from federation.rounds.history import QuarantinedSite, RoundRecord, SiteOutcome, SiteRecord
from federation.rounds.quarantine import Suspicion

SPEC = Digest(b"s" * 32)
A, B, C, D = (SiteName(letter) for letter in "abcd")
FIRST, SECOND = b"1" * 16, b"2" * 16


def opened(folder, epoch=1):
    return Ledger.open(folder, epoch=Epoch(epoch), spec_digest=SPEC)


def record(number):
    return RoundRecord(
        round=RoundNumber(number),
        epoch=Epoch(1),
        started_at=1.0,
        seconds=2.0,
        model_digest=bytes([number] * 32).hex(),
        sites=(
            SiteRecord(site=A, outcome=SiteOutcome.COUNTED, update_norm=2.5),
            SiteRecord(site=B, outcome=SiteOutcome.REFUSED, reason="norm"),
            SiteRecord(site=C, outcome=SiteOutcome.LOST),
        ),
    )


def test_a_fresh_folder_is_before_the_first_round(tmp_path):
    ledger = opened(tmp_path)
    assert (ledger.standpoint.round, ledger.standpoint.attempt, ledger.last_sequence) == (1, 1, 0)
    ledger.close()


def test_a_restart_knows_round_attempt_score_sites_and_what_became_of_each_update(tmp_path):
    ledger = opened(tmp_path)
    ledger.record_opened(epoch=Epoch(1), port=7000, spec_digest=SPEC)
    score = Score(best=0.5, best_round=RoundNumber(1), reference=0.5, stale=0, is_degraded=True)
    written = ledger.record_committed(record(1), attempt=Attempt(1), score=score, updates={A: FIRST, B: SECOND})
    ledger.record_missed(RoundNumber(2), Attempt(1), reason="why", updates={A: SECOND})
    before, settled = ledger.standpoint, ledger.settled
    ledger.close()
    again = opened(tmp_path, epoch=2)
    assert again.standpoint == before and again.settled == settled
    assert (before.round, before.attempt, before.port, before.score) == (2, 2, 7000, score)
    assert before.norms.rounds == ((2.5,),)
    assert before.expected == (A, B) and not before.knows_present, "an older journal says only who was asked"
    assert settled[A] == [
        Settled(round=RoundNumber(1), attempt=Attempt(1), update_id=FIRST, reason=""),
        Settled(round=RoundNumber(2), attempt=Attempt(1), update_id=SECOND, reason="quorum lost"),
    ]
    assert settled[B][0].reason == "norm"
    assert list(again.records()) == [written] and written.sequence == 2
    assert list(again.records(after=2)) == []
    again.close()


def test_a_restart_knows_who_works_on_which_task_where_rounds_overlap(tmp_path):
    ledger = opened(tmp_path)
    first, later, fourth = (RoundNumber(1), Attempt(1)), (RoundNumber(1), Attempt(2)), (RoundNumber(4), Attempt(1))
    ledger.record_asked(first, [A, B, C])
    assert ledger.standpoint.asked == {A: first, B: first, C: first}
    overlap = Overlap(settled={A: first}, asked={B: first})
    ledger.record_missed(RoundNumber(1), Attempt(1), reason="why", updates={A: FIRST}, overlap=overlap)
    ledger.record_asked(later, [A])
    overlap = Overlap(settled={A: later, B: first}, asked={C: first})
    ledger.record_committed(
        record(3), attempt=Attempt(1), score=Score(), updates={A: SECOND, B: FIRST}, overlap=overlap
    )
    ledger.record_asked(fourth, [B])
    before, settled = ledger.standpoint, ledger.settled
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint == before and again.settled == settled
    assert before.asked == {B: fourth, C: first}
    assert [(fact.round, fact.attempt, fact.reason) for fact in settled[A]] == [(1, 1, "quorum lost"), (1, 2, "")]
    assert [(fact.round, fact.attempt, fact.reason) for fact in settled[B]] == [(1, 1, "norm")]
    again.close()


def test_a_restart_knows_how_often_sites_were_drawn_in_the_attempt_in_progress(tmp_path):
    ledger = opened(tmp_path)
    ledger.record_asked((RoundNumber(1), Attempt(1)), [A], draws=1)
    ledger.record_asked((RoundNumber(1), Attempt(1)), [B], draws=2)
    ledger.record_asked((RoundNumber(1), Attempt(1)), [C])
    assert ledger.standpoint.draws == 2
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint.draws == 2
    again.record_missed(RoundNumber(1), Attempt(1), reason="why", updates={}, overlap=Overlap(settled={}, asked={}))
    assert again.standpoint.draws == 0
    again.record_asked((RoundNumber(1), Attempt(2)), [A], draws=1)
    again.record_committed(record(1), attempt=Attempt(2), score=Score(), updates={})
    assert again.standpoint.draws == 0
    again.close()


def test_a_restart_knows_who_was_there_asked_or_not(tmp_path):
    ledger = opened(tmp_path)
    ledger.record_present([A, B, D], None)
    ledger.record_committed(record(1), attempt=Attempt(1), score=Score(), updates={})
    assert ledger.standpoint.expected == (A, B, D), "one that was not asked too"
    ledger.record_present([A, D], (RoundNumber(1), Attempt(1)))
    assert (ledger.standpoint.expected, ledger.standpoint.pool) == ((A, D), ()), "what comes next is drawn from these"
    ledger.record_present([], None)
    before = ledger.standpoint
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint == before and again.standpoint.expected == () and again.standpoint.knows_present
    again.close()


def test_a_restart_knows_from_whom_the_attempt_in_progress_was_drawn(tmp_path):
    ledger = opened(tmp_path)
    first, second = (RoundNumber(1), Attempt(1)), (RoundNumber(1), Attempt(2))
    ledger.record_present([A, B, C], None)
    assert ledger.standpoint.pool == (), "from those that are there"
    ledger.record_present([A, B], first)
    ledger.record_present([A, B, D], first)
    assert ledger.standpoint.pool == (A, B, C)
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint.pool == (A, B, C)
    again.record_missed(*first, reason="why", updates={})
    assert again.standpoint.pool == ()
    again.record_present([A, B], second)
    assert again.standpoint.pool == (A, B, D)
    again.record_present([A, C], None)
    assert again.standpoint.pool == (), "drawn anew"
    again.record_present([A], second)
    again.record_committed(record(1), attempt=Attempt(2), score=Score(), updates={})
    assert (again.standpoint.expected, again.standpoint.pool) == ((A,), ())
    again.close()


def test_a_site_released_after_the_draw_was_not_in_it(tmp_path):
    ledger = opened(tmp_path)
    first = (RoundNumber(1), Attempt(1))
    ledger.record_present([A, B, C], None)
    ledger.record_released(A, 1)
    assert ledger.standpoint.pool == (), "the draw that comes has it"
    ledger.record_released(C, 1, first)
    ledger.record_present([A, B, C, D], first)
    assert ledger.standpoint.pool == (A, B)
    before = ledger.standpoint
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint == before
    again.record_committed(record(1), attempt=Attempt(1), score=Score(), updates={})
    again.record_released(B, 1, first)
    assert again.standpoint.pool == (), "it was drawn into a round that is over"
    again.close()


def test_a_restart_knows_what_became_of_sites_in_earlier_attempts_at_the_round(tmp_path):
    ledger = opened(tmp_path)
    standings = {
        A: Standing(progress=Progress.LOST, reason="quorum lost"),
        B: Standing(progress=Progress.REFUSED, reason="norm", norm=9.0),
    }
    ledger.record_missed(RoundNumber(1), Attempt(1), reason="why", updates={}, standings=standings)
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint.standings == standings
    again.record_committed(record(1), attempt=Attempt(2), score=Score(), updates={})
    assert again.standpoint.standings == {}
    again.close()


def test_strikes_quarantine_and_releases_are_remembered(tmp_path):
    held = QuarantinedSite(site=C, since_round=RoundNumber(1), reason="far")
    suspicion = Suspicion(strikes={B: 1}, held=(held,), releases={A: 2})
    ledger = opened(tmp_path)
    written = replace(record(1), quarantined=(held,))
    ledger.record_committed(written, attempt=Attempt(1), score=Score(), updates={}, suspicion=suspicion)
    assert ledger.standpoint.suspicion == suspicion
    ledger.record_released(C, 1)
    before = ledger.standpoint
    assert before.suspicion == Suspicion(strikes={B: 1}, releases={A: 2, C: 1})
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint == before
    again.record_committed(
        record(2), attempt=Attempt(1), score=Score(), updates={}, suspicion=replace(before.suspicion, strikes={})
    )
    assert again.standpoint.suspicion == Suspicion(releases={A: 2, C: 1})
    again.close()


def test_an_end_is_remembered_with_its_sequence(tmp_path):
    ledger = opened(tmp_path)
    ledger.record_ended(Finish("failed", "why", True))
    ledger.close()
    again = opened(tmp_path)
    assert again.standpoint.end == Finish("failed", "why", True) and again.standpoint.end_sequence == 1
    again.close()


def test_a_lower_epoch_is_superseded_and_lets_go_of_the_folder(tmp_path):
    ledger = opened(tmp_path, epoch=3)
    ledger.record_opened(epoch=Epoch(3), port=1, spec_digest=SPEC)
    ledger.close()
    with pytest.raises(ConflictError, match="superseded"):
        opened(tmp_path, epoch=2)
    opened(tmp_path, epoch=3).close()


def test_a_folder_of_another_experiment_is_refused(tmp_path):
    ledger = opened(tmp_path)
    ledger.record_opened(epoch=Epoch(1), port=1, spec_digest=SPEC)
    ledger.close()
    with pytest.raises(ConflictError, match="another experiment"):
        Ledger.open(tmp_path, epoch=Epoch(1), spec_digest=Digest(bytes(32)))


def test_a_folder_in_use_is_refused(tmp_path):
    ledger = opened(tmp_path)
    with pytest.raises(StorageError, match="held by"):
        opened(tmp_path)
    ledger.close()
