"""Stopping a run as its user does."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.rounds.history import RoundRecord


def stopping(*rounds: int) -> Callable[[RoundRecord], None]:
    """Return what presses Ctrl-C in these rounds."""

    def press(record: RoundRecord) -> None:
        if record.round in rounds:
            os.kill(os.getpid(), signal.SIGINT)

    return press
