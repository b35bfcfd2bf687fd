"""The transition table: its laws, and that what is refused says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from director import lifecycle
from federation.errors import ConflictError
from federation.names import ExperimentState as S

states = st.sampled_from(list(S))


def walk(start: S, wishes: list[S]) -> list[S]:
    """Follow the wishes the table allows; return every state passed."""
    passed = [start]
    for wish in wishes:
        if lifecycle.is_allowed(passed[-1], wish):
            passed.append(wish)
    return passed


def test_every_state_has_a_row() -> None:
    assert set(lifecycle.TRANSITIONS) == set(S)


def test_the_happy_path_is_allowed() -> None:
    path = [S.QUEUED, S.RUNNING, S.PAUSED, S.RUNNING, S.COMPLETED]
    assert walk(S.SUBMITTED, path) == [S.SUBMITTED, *path]


@given(wishes=st.lists(states, max_size=30))
def test_terminal_states_stay_terminal(wishes: list[S]) -> None:
    passed = walk(S.SUBMITTED, wishes)
    ended = [state for state in passed if state.is_terminal]
    assert len(ended) <= 1
    assert not ended or passed[-1] is ended[0]


@given(wishes=st.lists(states, max_size=30))
def test_only_what_has_run_completes(wishes: list[S]) -> None:
    passed = walk(S.SUBMITTED, wishes)
    if S.COMPLETED in passed:
        assert S.RUNNING in passed


@given(state=states)
def test_whatever_is_open_can_fail_and_be_cancelled(state: S) -> None:
    for end in (S.FAILED, S.CANCELLED):
        assert lifecycle.is_allowed(state, end) == (not state.is_terminal)


@given(state=states)
def test_asking_for_the_present_state_changes_nothing(state: S) -> None:
    assert lifecycle.check("e", state, state) is False
    assert not lifecycle.is_allowed(state, state)


def test_a_refused_transition_names_both_states_and_what_is_possible() -> None:
    with pytest.raises(ConflictError, match=r"digits-abcdefgh is completed and cannot become running: it has ended$"):
        lifecycle.check("digits-abcdefgh", S.COMPLETED, S.RUNNING)
    with pytest.raises(ConflictError, match="queued and cannot become completed; it can become cancelled, failed"):
        lifecycle.check("digits-abcdefgh", S.QUEUED, S.COMPLETED)


def test_a_long_reason_is_cut() -> None:
    change = lifecycle.Change(to=S.FAILED, reason="x" * 10_000, actor="", at=0.0)
    assert len(change.reason) == lifecycle.MAX_REASON
