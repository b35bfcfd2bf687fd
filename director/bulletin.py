"""Wakes whoever follows an experiment when something new about it is committed.

Nothing is told but that there is news: a follower reads the database from its own cursor on, so that none is missed and
none is told twice, however slow it is.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Bulletin:
    """Who follows which experiment. Lives on the event loop."""

    def __init__(self) -> None:
        self._followers: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def follow(self, experiment: str) -> Iterator[asyncio.Event]:
        """Follow an experiment: the event is set at each announcement; the follower clears it *before* it reads."""
        news = asyncio.Event()
        self._followers.setdefault(experiment, set()).add(news)
        try:
            yield news
        finally:
            followers = self._followers[experiment]
            followers.discard(news)
            if not followers:
                del self._followers[experiment]

    def announce(self, experiments: Iterable[str]) -> None:
        """Wake the followers of these experiments."""
        for experiment in experiments:
            for news in self._followers.get(experiment, ()):
                news.set()
