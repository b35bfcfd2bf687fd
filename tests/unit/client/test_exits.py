"""Exit codes: every error has one, every code has a meaning, and the numbers are a promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation import errors
from federation.client.exits import Exit, exit_for


def every_error() -> list[type[errors.FederationError]]:
    found: list[type[errors.FederationError]] = []
    waiting = [errors.FederationError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting.extend(child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
    return found


def make(kind: type[errors.FederationError]) -> errors.FederationError:
    if kind is errors.UpdateRejectedError:
        return errors.UpdateRejectedError(errors.Refusal.NORM, "too large")
    if kind is errors.DiskFullError:
        return errors.DiskFullError(Path("models"), 8, 0)
    return kind("ValueError")


EXPECTED = {
    errors.FederationError: Exit.FAILURE,
    errors.InvalidNameError: Exit.PLAN,
    errors.ConfigurationError: Exit.CONFIGURATION,
    errors.PlanError: Exit.PLAN,
    errors.PeerError: Exit.REFUSED,
    errors.IdentityError: Exit.REFUSED,
    errors.BundleError: Exit.REFUSED,
    errors.StaleRoundError: Exit.REFUSED,
    errors.UpdateRejectedError: Exit.REFUSED,
    errors.MalformedMessageError: Exit.REFUSED,
    errors.NotFoundError: Exit.NOT_FOUND,
    errors.ConflictError: Exit.REFUSED,
    errors.LimitError: Exit.REFUSED,
    errors.TransportError: Exit.UNREACHABLE,
    errors.TaskError: Exit.FAILURE,
    errors.PrivacyError: Exit.REFUSED,
    errors.StorageError: Exit.FAILURE,
    errors.DiskFullError: Exit.FAILURE,
}


def test_the_expectations_name_every_class_of_the_error_tree() -> None:
    assert set(EXPECTED) == set(every_error())


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_each_error_class_has_its_exit_code(kind: type[errors.FederationError]) -> None:
    assert exit_for(make(kind)) is EXPECTED[kind]


def test_an_unheard_of_error_is_a_failure_and_never_success() -> None:
    class NewError(errors.FederationError):
        pass

    assert exit_for(NewError("new")) is Exit.FAILURE


@pytest.mark.parametrize("code", list(Exit), ids=lambda code: code.name)
def test_each_code_says_what_it_means(code: Exit) -> None:
    assert code.meaning and "\n" not in code.meaning


def test_numbers_are_those_scripts_rely_on() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "FAILURE": 1,
        "USAGE": 2,
        "CONFIGURATION": 3,
        "PLAN": 4,
        "REFUSED": 5,
        "NOT_FOUND": 6,
        "UNREACHABLE": 7,
        "EXPERIMENT_FAILED": 8,
        "EXPERIMENT_CANCELLED": 9,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
