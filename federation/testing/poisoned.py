"""A shard whose training data an attack has spoilt: a hostile site in a real federation, by an envoy's configuration.

    [[shards]]
    name = "digits"
    factory = "federation.testing.poisoned:PoisonedShard"
    options = { attack = "label_flip", base = "federation.data.samples:DigitsShard", options = { part = 0 } }

Everything else about such a site is honest: its envoy, its collaborator, and how it trains. So an attack that also
changes what is sent, such as model replacement (``backdoor:3,replace``), is more than a shard can do, and is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from federation.attacks import load_attack
from federation.data.loading import load_shard
from federation.data.shard import ArrayShard, is_pair
from federation.rounds.randomness import derive_seed

if TYPE_CHECKING:
    from collections.abc import Mapping


class PoisonedShard(ArrayShard):
    """A shard whose training data an attack has spoilt: for a site of a real federation that is hostile by its data.

    Args:
        attack: specification of an attack on data, such as ``"label_flip"``.
        base: factory of the honest shard, ``module:Class``.
        options: its options.
        classes: classes in the federation; 0: as many as the site has seen.
        seed: decides what is spoilt.

    Raises:
        PlanError: there is no such attack.
        ShardError: the honest shard cannot be loaded.
        ValueError: the attack spoils no data, not such data, or changes what is sent as well.
    """

    def __init__(
        self, *, attack: str, base: str, options: Mapping[str, Any] = {}, classes: int = 0, seed: int = 0
    ) -> None:
        chosen, honest = load_attack(attack), load_shard("honest", base, options)
        if not chosen.poisons or not is_pair(honest.train) or not is_pair(honest.validation):
            raise ValueError(f"attack {attack!r} spoils no data of {base}: give label_flip or backdoor, and arrays")
        if chosen.alters_updates:
            raise ValueError(
                f"attack {attack!r} also changes what the site sends, which its shard cannot: the collaborator is an "
                f"honest one. Use {chosen.name!r} without a scale, such as 'backdoor:3'; for all of it simulate with "
                f"attack={attack!r}, or let HostileSite of federation.testing.attacks send it, with what the spoilt "
                "data teach as its target"
            )
        samples, targets = np.asarray(honest.train[0]), np.asarray(honest.train[1])
        rng = np.random.default_rng(derive_seed(seed, 0, "", "attack"))
        known = classes or int(targets.max()) + 1
        train = chosen.poison(samples, targets, classes=known, rng=rng)
        held = np.asarray(honest.validation[0]), np.asarray(honest.validation[1])
        super().__init__(train=train, validation=held, description=honest.description)
