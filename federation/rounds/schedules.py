"""How a learning rate goes over the rounds: a factor between 0 and 1 for each round, from the plan alone.

Written ``name:parameters``, for n rounds and round t = 1 … n, with u = (t − 1) / max(n − 1, 1) the share that is over:

* ``constant``: 1.
* ``cosine`` or ``cosine:FLOOR``: FLOOR + (1 − FLOOR)·(1 + cos πu)/2, as in arXiv:1608.03983 without restarts.
* ``linear`` or ``linear:FLOOR``: 1 − (1 − FLOOR)·u.
* ``step:EVERY,FACTOR``: FACTOR^⌊(t − 1)/EVERY⌋.
* ``exponential:FACTOR``: FACTOR^(t − 1).
* ``warmup:ROUNDS``: t/ROUNDS while t < ROUNDS, then 1.

FLOOR (0 by default) is the factor of the last round. Everything is float64 arithmetic on whole numbers of rounds, so a
site, a server and a simulation have the same rates to the last bit.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from federation.errors import PlanError
from federation.rounds.choices import parse_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.plan import Plan


@functools.lru_cache(maxsize=256)
def factor(spec: str, round_number: int, rounds: int) -> float:
    """Return what a schedule multiplies the rate of one round with.

    Args:
        spec: the schedule, such as ``"cosine:0.1"``.
        round_number: the round, from 1.
        rounds: rounds of the plan; cosine and linear end there.

    Returns:
        A factor of at least 0; of a later round than the last, that of the last.

    Raises:
        PlanError: no such schedule, or its parameters do not fit.
    """
    name, parameters = parse_choice(spec, "schedule")
    rule = _SCHEDULES.get(name)
    if rule is None:
        raise PlanError(f"there is no schedule {spec!r}, only {', '.join(sorted(_SCHEDULES))}")
    return rule(spec, parameters, min(round_number, rounds), rounds)


def local_rate(plan: Plan, round_number: int) -> float:
    """Return η_l(t), the step size of the sites in a round.

    Raises:
        PlanError: the plan's local schedule is none.
    """
    return plan.learning_rate * factor(plan.local_schedule, round_number, plan.rounds)


def server_rate(plan: Plan, round_number: int) -> float:
    """Return η_g(t), the step size of the server in a round.

    Raises:
        PlanError: the plan's server schedule is none.
    """
    return plan.server_learning_rate * factor(plan.server_schedule, round_number, plan.rounds)


def check_schedules(plan: Plan) -> None:
    """Check that both schedules of a plan are schedules.

    Raises:
        PlanError: one is not, or its parameters do not fit.
    """
    local_rate(plan, 1)
    server_rate(plan, 1)


def _constant(spec: str, parameters: Sequence[float], round_number: int, rounds: int) -> float:
    _expect(spec, parameters, (), not parameters)
    return 1.0


def _cosine(spec: str, parameters: Sequence[float], round_number: int, rounds: int) -> float:
    floor = _floor(spec, parameters)
    return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * _share(round_number, rounds))) / 2.0


def _linear(spec: str, parameters: Sequence[float], round_number: int, rounds: int) -> float:
    return 1.0 - (1.0 - _floor(spec, parameters)) * _share(round_number, rounds)


def _step(spec: str, parameters: Sequence[float], round_number: int, rounds: int) -> float:
    fits = len(parameters) == 2 and parameters[0] >= 1 and parameters[0].is_integer() and 0 < parameters[1] <= 1
    _expect(spec, parameters, ("EVERY", "FACTOR"), fits)
    return float(parameters[1] ** ((round_number - 1) // int(parameters[0])))


def _exponential(spec: str, parameters: Sequence[float], round_number: int, rounds: int) -> float:
    _expect(spec, parameters, ("FACTOR",), len(parameters) == 1 and 0 < parameters[0] <= 1)
    return float(parameters[0] ** (round_number - 1))


def _warmup(spec: str, parameters: Sequence[float], round_number: int, rounds: int) -> float:
    _expect(spec, parameters, ("ROUNDS",), len(parameters) == 1 and parameters[0] >= 1 and parameters[0].is_integer())
    return min(round_number / parameters[0], 1.0)


def _share(round_number: int, rounds: int) -> float:
    return (round_number - 1) / max(rounds - 1, 1)


def _floor(spec: str, parameters: Sequence[float]) -> float:
    _expect(spec, parameters, ("FLOOR",), len(parameters) <= 1 and all(0 <= value <= 1 for value in parameters))
    return parameters[0] if parameters else 0.0


def _expect(spec: str, parameters: Sequence[float], names: tuple[str, ...], fits: bool) -> None:
    if not fits:
        name = spec.partition(":")[0]
        form = f"{name}:{','.join(names)}" if names else name
        raise PlanError(f"schedule {spec!r} has parameters {list(parameters)}, expected {form}; factors lie in (0, 1]")


_SCHEDULES: dict[str, Callable[[str, Sequence[float], int, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
    "exponential": _exponential,
    "warmup": _warmup,
}
