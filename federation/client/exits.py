"""Exit codes of the `federation` command: one per kind of outcome, so that scripts need not read text.

The table is printed by ``federation --help`` and checked by a test.
"""

from __future__ import annotations

from enum import IntEnum

from federation import errors


class Exit(IntEnum):
    """Exit codes, each with its meaning."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    CONFIGURATION = 3
    PLAN = 4
    REFUSED = 5
    NOT_FOUND = 6
    UNREACHABLE = 7
    EXPERIMENT_FAILED = 8
    EXPERIMENT_CANCELLED = 9
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.OK: "done",
    Exit.FAILURE: "something else went wrong",
    Exit.USAGE: "the command line is not valid",
    Exit.CONFIGURATION: "settings, certificates or files of this machine are not usable; `doctor`: something is bad",
    Exit.PLAN: "the experiment folder, its plan or its model is not sound",
    Exit.REFUSED: "refused: identity, role, limit or state, such as a run folder in use, does not allow it",
    Exit.NOT_FOUND: "no such experiment, artifact or site",
    Exit.UNREACHABLE: "the director could not be reached; trying again may help",
    Exit.EXPERIMENT_FAILED: "the watched experiment failed",
    Exit.EXPERIMENT_CANCELLED: "the watched experiment was cancelled",
    Exit.INTERRUPTED: "interrupted with Ctrl-C; what runs elsewhere goes on",
    Exit.TERMINATED: "ended by SIGTERM; what runs elsewhere goes on",
}

_BY_ERROR: tuple[tuple[type[errors.FederationError], Exit], ...] = (
    (errors.ConfigurationError, Exit.CONFIGURATION),
    (errors.PlanError, Exit.PLAN),
    (errors.InvalidNameError, Exit.PLAN),
    (errors.NotFoundError, Exit.NOT_FOUND),
    (errors.TransportError, Exit.UNREACHABLE),
    (errors.PeerError, Exit.REFUSED),
    (errors.ConflictError, Exit.REFUSED),
    (errors.LimitError, Exit.REFUSED),
    (errors.PrivacyError, Exit.REFUSED),
    (errors.TaskError, Exit.FAILURE),
    (errors.StorageError, Exit.FAILURE),
)


def exit_for(error: errors.FederationError) -> Exit:
    """Return the exit code an error ends the command with."""
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return Exit.FAILURE
