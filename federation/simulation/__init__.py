"""A federation without a network: the methods, the arithmetic and the round machine of the wire, in one process.

`simulate` is the way in. Only transport, files and clock are replaced: sites work through
`federation.training.work.SiteWork`, rounds through the machine of `federation.rounds`, models through
`federation.storage`. So a synchronous plan gives, bit for bit, the model it gives over the wire.
"""

from federation.simulation.running import RunResult, simulate
from federation.simulation.script import Rule, Script
from federation.simulation.times import TimeModel

__all__ = ["Rule", "RunResult", "Script", "TimeModel", "simulate"]
