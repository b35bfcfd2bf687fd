"""Fixed-time training: every site works as long as the others, not as much."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from federation.algorithms.algorithm import Algorithm
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.plan import ExperimentSpec


class FixedTime(Algorithm):
    r"""FedAvg in which a site takes as many local steps as fit into ``plan.local_seconds``.

    A slow site sends less work instead of arriving late, so a round has a known length. ``plan.local_steps``, if given,
    caps the steps. The aggregation is FedAvg's; FedNova with ``local_seconds`` also corrects for the unequal steps.

    $$\tau_i = \max\{\tau : \text{time of } \tau \text{ steps} \le T\}, \qquad
    x^{t+1} = x^t + \eta_g \frac{\sum_S p_i \Delta_i}{\sum_S p_i}$$

    How many steps fit is up to the clock: the one method whose results do not repeat.

    Example:
        ``Plan(algorithm="fixed_time", local_seconds=20.0, local_steps=500)``
    """

    name: ClassVar[str] = "fixed_time"
    title: ClassVar[str] = "Fixed-time training"
    source: ClassVar[str] = "FedAvg (arXiv:1602.05629) with a time budget in place of E epochs"

    @property
    def needs_problem(self) -> bool:
        """True: the loop that watches the time is the problem's."""
        return True

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse a plan without a time budget.

        Raises:
            PlanError: the plan names no ``local_seconds``.
        """
        if spec.plan.local_seconds is None:
            raise PlanError("algorithm 'fixed_time' needs a time budget: set local_seconds")
