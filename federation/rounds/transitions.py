"""Tables of which phase may follow which, and their pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.rounds.events import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

Transitions = dict[tuple[Phase, Phase], str]
"""Which phase may follow which, and why."""


def draw_states(transitions: Mapping[tuple[Phase, Phase], str]) -> str:
    """Return a state diagram as Mermaid text, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.JOINING.value}"]
    lines += [f"    {source.value} --> {target.value}: {why}" for (source, target), why in transitions.items()]
    return "\n".join([*lines, f"    {Phase.ENDED.value} --> [*]"]) + "\n"
