"""Attacks: what a hostile site may send instead of what it learnt, so that defences are tried before they are trusted.

Pure NumPy, one file each, found by `load_attack("ipm:2")`. `federation.simulation` lets simulated sites be hostile,
`federation.testing` sites of a real federation. They are a test bench: nothing of a federation in use imports them.
"""

from federation.attacks.attack import Attack, Sight
from federation.attacks.backdoor import Backdoor
from federation.attacks.registry import BUILT_IN, load_attack

__all__ = ["BUILT_IN", "Attack", "Backdoor", "Sight", "load_attack"]
