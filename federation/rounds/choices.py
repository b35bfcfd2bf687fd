"""A choice and its numbers in one word of the plan, ``name`` or ``name:1,0.5``: for schedules, samplers, partitions."""

from __future__ import annotations

import math

from federation.errors import PlanError


def parse_choice(spec: str, what: str) -> tuple[str, tuple[float, ...]]:
    """Divide ``name:parameters`` into the name and its numbers.

    Args:
        spec: what the plan says.
        what: what it chooses, for the error, such as ``"schedule"``.

    Raises:
        PlanError: a parameter is not a finite number.
    """
    name, colon, rest = spec.partition(":")
    numbers = []
    for text in rest.split(",") if colon else ():
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise PlanError(f"{what} {spec!r}: parameter {text!r} is not a number; write it as {name}:0.5")
        numbers.append(number)
    return name, tuple(numbers)
