"""What the models of a plan have in common: frozen, nothing unknown, every problem named with its place."""

from __future__ import annotations

import difflib
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from federation.errors import InvalidNameError
from federation.names import check_name

MetricName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z][a-zA-Z0-9_]{0,63}$")]
_CHOICE = re.compile(r"[a-z0-9_]+(:[-+0-9.e,a-z]+)*")


class Frozen(BaseModel):
    """A model that never changes and takes no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def check_written_name(text: str, what: str) -> None:
    """Check a name as a validator must: pydantic gathers ValueErrors and names the place of each."""
    try:
        check_name(text, what)
    except InvalidNameError as error:
        raise ValueError(str(error)) from error


def check_choice(text: str, what: str) -> None:
    """Check that a codec, schedule or sampler is written as one; whether it exists, those who know them say."""
    if not _CHOICE.fullmatch(text):
        raise ValueError(f"{what} is {text[:80]!r}, expected a name and its parameters such as 'name:0.1'")


def explain(error: ValidationError, what: str, model: type[BaseModel]) -> str:
    """Return what is wrong with a plan or a spec, each problem with its place and what was got.

    Args:
        error: what pydantic found.
        what: is not valid, for people.
        model: has the fields that there are; a typo is told the nearest of them.
    """
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"]) or what
        if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
            lines.append(f"there is no {place!r}{_nearest(place, sorted(model.model_fields))}")
            continue
        got = problem.get("input")
        shown = "" if isinstance(got, dict) else f" (got {str(got)[:80]!r})"
        lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return f"the {what} is not valid: " + "; ".join(lines)


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else f", only {', '.join(valid)}"


def explain_options(what: str, model: type[BaseModel], error: ValidationError) -> str:
    """Return what is wrong with options, each with what was given, and which there are.

    Args:
        what: whose they are, such as ``rule_options of rule 'krum'``.
        model: the class that has them as fields.
        error: why they were refused.
    """
    known = ", ".join(model.model_fields) or "none"
    problems = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'options'}: "
        f"{problem['msg'].removeprefix('Value error, ')} (got {str(problem.get('input'))[:80]!r})"
        for problem in error.errors(include_url=False)
    )
    return f"{what} are not valid: {problems}; its options are: {known}"
