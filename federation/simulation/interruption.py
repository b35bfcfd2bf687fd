"""Ctrl-C, taken politely: the first lets the round under way be committed, the second ends at once."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class Interruption:
    """Whether somebody pressed Ctrl-C while its context lasted. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self._is_set = False
        self._earlier: Any = None

    def is_set(self) -> bool:
        """Tell whether to stop after this round."""
        return self._is_set

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)
            self._earlier = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_set:
            raise KeyboardInterrupt
        self._is_set = True
