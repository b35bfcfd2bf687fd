"""Multi-Krum: the mean of the vectors that Krum ranks best.

Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, section 7.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from federation.aggregation.krum import Krum
from federation.errors import PlanError


class MultiKrum(Krum):
    """The mean of the m vectors that Krum ranks best.

    Stands f of 2f + 3 or more sites, and averages noise away where Krum does not.

    Formula: out = mean of the m vectors of least score, score as of Krum.

    Attributes:
        m: vectors that are averaged; by default n - f - 2, at most n - f.
    """

    name: ClassVar[str] = "multi_krum"
    title: ClassVar[str] = "Multi-Krum"
    source: ClassVar[str] = "arXiv:1703.02757, section 7"

    m: int | None = Field(default=None, ge=1)

    def check(self, vectors: int, byzantine: int) -> None:
        """Check 2f + 2 < n and m ≤ n - f.

        Raises:
            PlanError: one does not hold.
        """
        super().check(vectors, byzantine)
        if self.m is not None and self.m > vectors - byzantine:
            raise PlanError(
                f"rule 'multi_krum': m is {self.m}, more than the n - f = {vectors - byzantine} honest ones that "
                f"{vectors} updates are sure to have"
            )

    def _picked(self, count: int, byzantine: int) -> int:
        return self.m or count - byzantine - 2
