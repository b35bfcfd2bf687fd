"""What a benchmark reports: one `Result` per case, printed as a line for people or for programs."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured figure.

    Attributes:
        benchmark: name of the benchmark.
        case: what was varied, such as ``"4 sites"``.
        value: the figure, in `unit`.
        unit: unit of `value` and `limit`.
        limit: what the figure is held against, measured in the same run or, where nothing can be, the target.
        ratio: how the two compare; the benchmark's docstring says which way round.
        settings: everything needed to repeat it.
    """

    benchmark: str
    case: str
    value: float
    unit: str
    limit: float | None
    ratio: float | None
    settings: Mapping[str, object]

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(dataclasses.asdict(self))

    def to_text(self) -> str:
        """One line for people."""
        beside = "" if self.limit is None else f"  limit {self.limit:.4g} {self.unit}"
        ratio = "" if self.ratio is None else f"  ratio {self.ratio:.3f}"
        return f"{self.benchmark:14} {self.case:34} {self.value:10.4g} {self.unit}{beside}{ratio}"


def median(values: Sequence[float]) -> float:
    """Median of repeated measurements.

    Raises:
        ValueError: nothing was measured.
    """
    if not values:
        raise ValueError("nothing was measured")
    return statistics.median(values)
