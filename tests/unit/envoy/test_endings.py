from __future__ import annotations

import pytest

from envoy.endings import DIED, Again, AtRest, Ending, Over, judge
from federation.runtime.records import ExitRecord


def _record(outcome: str, error_class: str = "") -> ExitRecord:
    return ExitRecord(outcome=outcome, error_class=error_class, reason="why", at=1.0)


@pytest.mark.parametrize(
    ("record", "asked", "crashes", "expected"),
    [
        pytest.param(_record("finished"), False, 0, Over(outcome="finished", reason="why"), id="finished"),
        pytest.param(_record("finished"), True, 0, Over(outcome="finished", reason="why"), id="finished as we asked"),
        pytest.param(
            _record("failed", "KeyError"),
            False,
            0,
            Over(outcome="failed", error_class="KeyError", reason="why"),
            id="failed",
        ),
        pytest.param(
            _record("superseded", "SupersededError"),
            False,
            0,
            Over(outcome="failed", error_class="SupersededError", reason="why"),
            id="two would take turns for ever",
        ),
        pytest.param(_record("stopped"), True, 0, AtRest(), id="stopped as we asked"),
        pytest.param(None, True, 0, AtRest(), id="killed as we asked"),
        pytest.param(_record("stopped"), False, 0, Again(), id="stopped by somebody else"),
        pytest.param(None, False, 0, Again(), id="crashed"),
        pytest.param(None, False, 4, Again(), id="crashed for the fifth time"),
        pytest.param(
            None,
            False,
            5,
            Over(outcome="failed", error_class=DIED, reason="the collaborator ended 6 times in a row: SIGKILL"),
            id="crashed too often",
        ),
    ],
)
def test_what_an_end_means(record: ExitRecord | None, asked: bool, crashes: int, expected: Ending) -> None:
    assert judge(record, "SIGKILL", asked=asked, crashes=crashes, max_restarts=5) == expected


def test_a_full_disk_is_waited_for_however_often_it_was_in_the_way() -> None:
    assert judge(None, "exit code 1", asked=False, crashes=5, max_restarts=5, is_disk_full=True) == Again()
