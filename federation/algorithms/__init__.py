"""The methods: each one file that cites its paper and reads like it, client half and server half side by side.

Every synchronous method fills in one loop, eight hooks of which it changes those it needs (`client`, `server`); a hook
it leaves alone is FedAvg's. Nothing here knows torch, files, networks or clocks, so a method that runs in simulation
runs over the wire: the same objects are called with the same arrays. Start with `algorithm`, then `scaffold`.

A method of one's own is a subclass of `Algorithm` in one file. Its client half may travel in the bundle; its server
half is a plugin that the operator installed (entry-point group ``federation.algorithms``); in simulation any object
serves.
"""

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf, ClientRound, LocalProblem, OptimizerChoice, Run, Step
from federation.algorithms.registry import algorithm_names, check, load_algorithm
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, SiteFacts, count_sites, examples, uniform
from federation.algorithms.vector import Vector

__all__ = [
    "Algorithm",
    "ClientHalf",
    "ClientRound",
    "LocalProblem",
    "OptimizerChoice",
    "Run",
    "ServerHalf",
    "ServerRound",
    "ServerTile",
    "SiteFacts",
    "Step",
    "Vector",
    "algorithm_names",
    "check",
    "count_sites",
    "examples",
    "load_algorithm",
    "uniform",
]
