"""What stories of an asynchronous machine have beside `stories`."""

from __future__ import annotations

from federation.rounds import events as ev
from federation.rounds.asynchronous import AsyncMachine

from .stories import has

QUIET = {"evaluate_every": 0}


def started(plan, *sites, resume=None, **options):
    """A machine that has been started and whose sites are ready, and the last actions."""
    machine = AsyncMachine(plan, resume, **{"buffer": 1, **options})
    actions = machine.start()
    for site in sites:
        actions = machine.step(ev.SiteReady(site))
    return machine, actions


def committed(machine):
    """Combine and commit, without evaluation; return the last actions."""
    assert has(machine.step(ev.Combined()), ev.Commit)
    return machine.step(ev.Committed())
