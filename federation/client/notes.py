"""What an author should know of a plan that is sound: `simulate` and `submit` say it, and go on.

Notes go to standard error, one line each, so that what is printed for other programs stays what it is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from federation.algorithms.registry import BUILT_IN
from federation.rounds.shares import explain_no_spare

if TYPE_CHECKING:
    from federation.plan import ExperimentSpec


def print_notes(spec: ExperimentSpec) -> None:
    """Print what should be known of the plan."""
    plan, method = spec.plan, BUILT_IN.get(spec.plan.algorithm)
    if method is not None and method.mode == "buffer":
        return  # a step of an asynchronous method is made of what is in; nothing is missing from it
    if note := explain_no_spare(plan):
        print(f"federation: note: {note}", file=sys.stderr)
