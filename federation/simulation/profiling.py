"""Where a simulation's time goes, by component, and a torch trace of one round: ``federation simulate --profile``.

1. A component's seconds are wall time between the start and the end of its spans, in the process of the server. A span
   inside another is counted in both, so shares are of the whole time and need not add up to 1. What lies in no span,
   such as imports and reading the data, has a row of its own.
2. Memory is the largest resident size seen at the end of a span; sampled there, it misses what came and went inside.
3. The trace covers round `TRACED_ROUND`, when first-time costs are past, and what runs in this process: with several
   workers, the server's part. Making it is a component too, ``trace``; where there is no torch there is none.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from federation.runtime.resources import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACED_ROUND = 2
_SILENT = "6"
"""Above the level at which torch's tracer tells the terminal that it starts and stops; who sets its own is obeyed."""


@dataclass(slots=True)
class Component:
    """What was measured of one component: how often, seconds in all, largest resident memory in bytes."""

    calls: int = 0
    seconds: float = 0.0
    memory: int = 0


class Profile:
    """Measures one run.

    Args:
        trace: file for the torch trace (Chrome's format); None: no trace.

    Attributes:
        components: by name, in the order in which they first ended.
        traced: the file of the trace, once it is written.
    """

    def __init__(self, trace: Path | None = None) -> None:
        self.components: dict[str, Component] = {}
        self.traced: Path | None = None
        self._trace = trace if trace is not None and find_spec("torch") is not None else None
        self._spans: list[tuple[float, float]] = []
        self._profiler: Any = None
        self._started = time.perf_counter()
        self._ended: float | None = None

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure what happens inside as part of a component."""
        started = time.perf_counter()
        try:
            yield
        finally:
            component = self.components.setdefault(name, Component())
            ended = time.perf_counter()
            component.calls += 1
            component.seconds += ended - started
            self._spans.append((started, ended))
            component.memory = max(component.memory, resident_bytes())

    def round_done(self, number: int) -> None:
        """Note that a round was committed: the trace begins after the one before its round and ends with it."""
        if self._trace is None:
            return
        if self._profiler is not None:
            self._write_trace()
        elif number == TRACED_ROUND - 1:
            os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
            with self.span("trace"):
                from torch.profiler import ProfilerActivity, profile

                self._profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
                self._profiler.start()

    def finish(self) -> None:
        """End measuring; a trace under way is written."""
        if self._profiler is not None:
            self._write_trace()
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall time from its making to `finish`, or to now."""
        return (self._ended if self._ended is not None else time.perf_counter()) - self._started

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows as texts: the longest component first, then what no span covers, and the whole."""
        whole = self.seconds
        head = ["component", "calls", "seconds", "share", "ms a call", "resident MB"]
        rows = []
        for name, found in sorted(self.components.items(), key=lambda item: (-item[1].seconds, item[0])):
            rows.append(
                [
                    name, str(found.calls), f"{found.seconds:.3f}", f"{found.seconds / whole:.1%}",
                    f"{1e3 * found.seconds / found.calls:.3f}", f"{found.memory / 1e6:.0f}",
                ]
            )  # fmt: skip
        outside = whole - self._covered()
        rows.append(["none of these", "", f"{outside:.3f}", f"{outside / whole:.1%}", "", ""])
        rows.append(["whole run", "1", f"{whole:.3f}", "100.0%", f"{1e3 * whole:.3f}", ""])
        return head, rows

    def _covered(self) -> float:
        """Return the seconds in at least one span."""
        covered, until = 0.0, -math.inf
        for started, ended in sorted(self._spans):
            covered += max(0.0, ended - max(started, until))
            until = max(until, ended)
        return covered

    def _write_trace(self) -> None:
        with self.span("trace"):
            self._profiler.stop()
            if self._trace is not None:
                self._trace.parent.mkdir(parents=True, exist_ok=True)
                self._profiler.export_chrome_trace(str(self._trace))
        self._profiler, self.traced, self._trace = None, self._trace, None
