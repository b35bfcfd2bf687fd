"""Attacks over the wire: hostile sites that speak the real protocol.

The attacks themselves are those of `federation.attacks`, which a simulation uses too; here they know no more than a
real adversary does. `HostileSite` sends what an attack makes of what it, and those it colludes with, would have sent
honestly. A site that is hostile by its data alone is `federation.testing.poisoned`. Model replacement is both: give
each `HostileSite` as its `target` what the spoilt data teach, and a `Collusion` of ``"backdoor:3,replace"``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.attacks import BUILT_IN, Attack, Backdoor, Sight, load_attack
from federation.attacks.flat import buffer_of, flat_of
from federation.compression import decode_payload, encode_payload, load_codec
from federation.errors import FederationError, UpdateRejectedError
from federation.rounds.randomness import derive_seed
from federation.tensors import pack, unpack
from federation.testing.honest_sites import HonestSite
from federation.v1 import aggregator_pb2 as pb
from federation.wire.payloads import DELTA, IDENTITY_CODEC

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from federation.attacks.attack import Array
    from federation.names import SiteName

__all__ = ["BUILT_IN", "Attack", "Backdoor", "Collusion", "HostileSite", "Sight", "load_attack"]


class Collusion:
    """What the hostile sites of one test share: in each round they wait for one another, then act as one.

    So each of them must be asked in every round that any is asked in.

    Args:
        attack: an attack or its specification.
        sites: names of all hostile sites.
        total: n, the sites of the federation.
        seed: of their randomness.
        rule: aggregate if they sent a matrix of shape (f, d), for those who know the rule in force.

    Raises:
        ValueError: the attack does nothing but spoil data, and these sites have none; or it needs to see more updates
            than these sites have, and would send an honest one.
    """

    def __init__(
        self,
        attack: Attack | str,
        sites: Collection[str],
        *,
        total: int,
        seed: int = 0,
        rule: Callable[[Array], Array] | None = None,
    ) -> None:
        self.attack = load_attack(attack) if isinstance(attack, str) else attack
        if not self.attack.alters_updates:
            raise ValueError(
                f"attack {self.attack.spec!r} spoils data; use PoisonedShard in a federation with trainers"
            )
        if len(sites) < self.attack.fewest_seen:
            raise ValueError(
                f"attack {self.attack.spec!r} is made of {self.attack.fewest_seen} updates or more, and over the wire "
                f"hostile sites see only their own: {len(sites)} would send what it learnt, unchanged. Let more "
                "collude, choose an attack that needs one, such as 'ipm', or simulate"
            )
        self._sites = sorted(sites)
        self._total = total
        self._seed = seed
        self._rule = rule
        self._own: dict[tuple[int, int], dict[str, Array]] = {}
        self._sent: dict[tuple[int, int], asyncio.Future[dict[str, Array]]] = {}

    async def act(self, site: SiteName, task: pb.Task, own: Array) -> Array:
        """Return what a site sends, once all of them have said what they would have sent."""
        key = (task.round, task.attempt)
        gathered = self._own.setdefault(key, {})
        future = self._sent.setdefault(key, asyncio.get_running_loop().create_future())
        gathered[site] = own
        if len(gathered) == len(self._sites):
            future.set_result(self._act(task.round, np.stack([gathered[name] for name in self._sites])))
        return (await future)[site]

    def _act(self, round_number: int, own: Array) -> dict[str, Array]:
        rng = np.random.default_rng(derive_seed(self._seed, round_number, "", "attack"))
        sight = Sight(own=own, honest=own, total=self._total, round=round_number, rng=rng, rule=self._rule)
        return dict(zip(self._sites, self.attack.updates(sight), strict=True))


class HostileSite(HonestSite):
    """Learns honestly, sends what an attack makes of it, and evaluates honestly.

    Args:
        collusion: with whom, and how.
        rest: as `HonestSite`.

    Attributes:
        refusals: what it was told, update by update.
    """

    def __init__(self, *rest: Any, collusion: Collusion, **options: Any) -> None:
        super().__init__(*rest, **options)
        self._collusion = collusion
        self.refusals: list[FederationError] = []

    async def answer(self, task: pb.Task) -> None:
        """Do one task."""
        if task.kind == pb.TASK_KIND_EVALUATE:
            await super().answer(task)
            return
        model = unpack(self.meeting.spec.schema_.federated, await self.load(task))
        payloads = self.train(task, model)
        payloads[str(DELTA)] = await self._attacked(task, payloads[DELTA])
        await self.send(task, self.header(task, payloads, {"loss": self.loss(model)}), payloads)

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload, and remember what is said to it."""
        try:
            await self.push(header, payloads)
        except UpdateRejectedError as error:
            self.refusals.append(error)
            self.pending = None

    async def _attacked(self, task: pb.Task, payload: bytes) -> bytes:
        plan = next(plan for plan in self.meeting.spec.uploads() if plan.name == DELTA)
        is_plain = plan.codec == IDENTITY_CODEC
        data = payload if is_plain else bytes(pack(plan.schema, decode_payload(payload, plan.schema, (plan.codec,))))
        sent = buffer_of(plan.schema, await self._collusion.act(self.name, task, flat_of(plan.schema, data)))
        return bytes(sent) if is_plain else encode_payload(plan.schema, sent, load_codec(plan.codec), seed=task.round)
