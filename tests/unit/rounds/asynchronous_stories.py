"""What every story of an asynchronous machine begins with: sites, a started machine, and looks at its actions."""

from __future__ import annotations

from federation.names import SiteName
from federation.rounds import events as ev
from federation.rounds.asynchronous import AsyncMachine

A, B, C, D, E = (SiteName(f"site-{letter}") for letter in "abcde")
QUIET = {"evaluate_every": 0}


def the(actions, kind):
    """The one action of a kind."""
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


def has(actions, kind):
    return any(isinstance(action, kind) for action in actions)


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
