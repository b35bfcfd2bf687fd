"""What every story of a round machine begins with: sites, a started machine, and looks at its actions."""

from __future__ import annotations

from federation.names import SiteName
from federation.rounds import events as ev
from federation.rounds.machine import RoundMachine

A, B, C, D, E = (SiteName(f"site-{letter}") for letter in "abcde")


def the(actions, kind):
    """The one action of a kind."""
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


def has(actions, kind):
    return any(isinstance(action, kind) for action in actions)


def started(plan, *sites, resume=None):
    """A machine that has been started and whose sites are ready, and the last actions."""
    machine = RoundMachine(plan, resume)
    actions = machine.start()
    for site in sites:
        actions = machine.step(ev.SiteReady(site))
    return machine, actions


def run_round(machine, *sites, loss=0.5):
    """Bring the open round to its end with every site answering; return the last actions."""
    for site in sites:
        actions = machine.step(ev.UpdateAdmitted(site))
    assert the(actions, ev.Combine).sites == sites
    actions = machine.step(ev.Combined())
    for site in the(actions, ev.AskEvaluate).sites:
        actions = machine.step(ev.SiteEvaluated(site, 10, {"loss": loss}))
    assert has(actions, ev.Commit)
    return machine.step(ev.Committed())
