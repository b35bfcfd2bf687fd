"""Hostile sites of a simulation: an attack between what they learnt and what is admitted.

Rules, in order:

1. Hostile sites collude and are omniscient: they see the honest updates asked for together with theirs, and know the
   rule in force. It is the worst case; nothing over the wire gives a site that much.
2. They train as everybody does, on data the attack may have spoilt. Then the attack sees every honest change of the
   asking and writes the hostile ones, encoded as the plan says. Where no honest site answered they see their own.
3. Sites are taken in name order and randomness comes from the stream (seed, round, "", "attack"), so a run is the same
   with any number of workers, and after any stop.
4. What is sent then meets the same admission as any update. A number that is not finite is refused there, not failed at
   the site: a hostile site does not ask its collaborator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from federation.attacks import Attack, Backdoor, Sight, load_attack
from federation.attacks.flat import buffer_of, flat_of
from federation.compression import encode_payload, load_codec
from federation.data.local import LocalData
from federation.data.part import labels_of
from federation.data.shard import ArrayShard, is_pair
from federation.errors import PlanError
from federation.names import SiteName
from federation.rounds.randomness import derive_seed
from federation.simulation.memory import Payload
from federation.storage.encoded import IDENTITY, decoded
from federation.training.exchange import DELTA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from federation.attacks.attack import Array
    from federation.data.shard import Shard
    from federation.names import RoundNumber
    from federation.plan import ExperimentSpec
    from federation.simulation.bench import TrainAnswer
    from federation.simulation.memory import Arena
    from federation.training.experiment import Experiment

_PURPOSE = "attack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threat:
    """Who is hostile, and how.

    Attributes:
        attack: what they do.
        sites: their names.
    """

    attack: Attack
    sites: frozenset[SiteName]


def threat_of(attack: Attack | str | None, hostile: int | Sequence[str], names: Sequence[SiteName]) -> Threat | None:
    """Return the threat of `simulate`'s arguments; None: all sites are honest.

    Args:
        attack: an attack or its specification.
        hostile: names, or how many: the last in name order.
        names: every site, in name order.

    Raises:
        PlanError: one is given without the other, or a hostile site is none of the sites.
    """
    if attack is None and not hostile:
        return None
    if attack is None or not hostile:
        raise PlanError(
            f"attack is {attack!r} and hostile {hostile!r}: an attack needs hostile sites, and they need one"
        )
    if isinstance(hostile, int):
        if not 0 < hostile <= len(names):
            raise PlanError(f"{hostile} hostile sites of {len(names)}; give 1 to {len(names)}")
        hostile = names[-hostile:]
    chosen = frozenset(map(SiteName, hostile))
    unknown = sorted(chosen - set(names))
    if unknown:
        raise PlanError(f"hostile site {unknown[0]!r} is none of the sites, {names[0]} to {names[-1]}")
    return Threat(attack=load_attack(attack) if isinstance(attack, str) else attack, sites=chosen)


def poisoned(threat: Threat, shards: Mapping[SiteName, Shard], seed: int) -> dict[SiteName, Shard]:
    """Return the data of each site, with what the attack makes of that of hostile ones; they validate honestly.

    Raises:
        PlanError: the data are no arrays, or no classes.
    """
    if not threat.attack.poisons:
        return dict(shards)
    classes = 1 + max(int(labels_of(shard.train).max()) for shard in shards.values())
    spoilt = dict(shards)
    for site in sorted(threat.sites):
        train = shards[site].train
        if not is_pair(train):
            raise PlanError(f"attack {threat.attack.spec!r} spoils arrays; the data of {site} are a dataset")
        rng = np.random.default_rng(derive_seed(seed, 0, site, _PURPOSE))
        try:
            samples, targets = np.asarray(train[0]), np.asarray(train[1])
            data = threat.attack.poison(samples, targets, classes=classes, rng=rng)
        except ValueError as error:
            raise PlanError(f"attack {threat.attack.spec!r} at {site}: {error}") from error
        spoilt[site] = ArrayShard(train=data, validation=shards[site].validation)  # type: ignore[arg-type]  # a pair
    return spoilt


class HostileSites:
    """Writes the updates of hostile sites. Implements `federation.simulation.roles.Tampering`.

    Args:
        threat: who and how.
        spec: the experiment.
        arena: where updates lie.
    """

    def __init__(self, threat: Threat, spec: ExperimentSpec, arena: Arena) -> None:
        self.sites = threat.sites
        self._attack = threat.attack
        self._arena = arena
        self._seed = spec.plan.seed
        self._plan = next(plan for plan in spec.uploads() if plan.name == DELTA)

    def tamper(
        self,
        round_number: RoundNumber,
        answers: Sequence[TrainAnswer],
        slots: Mapping[SiteName, int],
        rule: Callable[[Mapping[SiteName, Array]], Array],
    ) -> list[TrainAnswer]:
        """See `Tampering.tamper`.

        Raises:
            PlanError: the attack cannot be made here.
        """
        trained = {answer.site: answer for answer in sorted(answers, key=lambda row: row.site) if answer.trained}
        hostile = [site for site in trained if site in self.sites]
        if not hostile:
            return list(answers)
        deltas = {site: self._delta(answer, slots[site]) for site, answer in trained.items()}
        own = np.stack([deltas[site] for site in hostile])
        honest = [delta for site, delta in deltas.items() if site not in self.sites]

        def outcome(updates: Array) -> Array:
            return rule({**deltas, **dict(zip(hostile, updates, strict=True))})

        sight = Sight(
            own=own,
            honest=np.stack(honest) if honest else own,
            total=len(trained),
            round=round_number,
            rng=np.random.default_rng(derive_seed(self._seed, round_number, "", _PURPOSE)),
            rule=outcome,
        )
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                updates = self._attack.updates(sight)
        except ValueError as error:
            raise PlanError(f"attack {self._attack.spec!r}: {error}") from error
        sent = {
            site: self._sent(trained[site], slots[site], update, round_number)
            for site, update in zip(hostile, updates, strict=True)
        }
        return [sent.get(answer.site, answer) for answer in answers]

    def _delta(self, answer: TrainAnswer, slot: int) -> Array:
        assert answer.trained is not None  # noqa: S101 - the caller has looked
        payload = Payload(self._arena.update(slot, DELTA)[: answer.trained.payload_bytes[DELTA]])
        if self._plan.codec == IDENTITY:
            return flat_of(self._plan.schema, payload.bytes())
        data, source = bytearray(self._plan.schema.nbytes), decoded(payload, self._plan)
        for segment in self._plan.schema.segments:
            source.pread_into(segment.offset, memoryview(data)[segment.offset : segment.offset + segment.nbytes])
        return flat_of(self._plan.schema, data)

    def _sent(self, answer: TrainAnswer, slot: int, update: Array, round_number: RoundNumber) -> TrainAnswer:
        assert answer.trained is not None  # noqa: S101 - the caller has looked
        data: bytes | bytearray = buffer_of(self._plan.schema, update)
        if self._plan.codec != IDENTITY:
            seed = derive_seed(self._seed, round_number, answer.site, _PURPOSE)
            try:
                data = encode_payload(self._plan.schema, data, load_codec(self._plan.codec), seed=seed)
            except ValueError as error:
                raise PlanError(
                    f"attack {self._attack.spec!r} cannot be encoded by {self._plan.codec!r} ({error}): simulate it "
                    "without compression"
                ) from error
        self._arena.update(slot, DELTA)[: len(data)] = data
        sizes = {**answer.trained.payload_bytes, DELTA: len(data)}
        return answer._replace(trained=replace(answer.trained, payload_bytes=sizes))


def attack_success(
    threat: Threat, experiment: Experiment, arrays: Mapping[str, Any], shards: Mapping[SiteName, Shard]
) -> float | None:
    """Return the success rate of a backdoor: accuracy of a model on honest sites' triggered validation examples.

    Args:
        threat: who and how.
        experiment: its task must measure ``accuracy``.
        arrays: the model, whole.
        shards: data of every site.

    Returns:
        From 0 to 1; None: the attack is no backdoor, or the task does not say ``accuracy``.
    """
    if not isinstance(threat.attack, Backdoor):
        return None
    pairs = [shard.validation for site, shard in sorted(shards.items()) if site not in threat.sites]
    if not pairs or not all(is_pair(pair) for pair in pairs):
        return None
    samples, targets = (np.concatenate([np.asarray(pair[place]) for pair in pairs]) for place in (0, 1))
    triggered = threat.attack.triggered(samples, targets)
    if not len(triggered[0]):
        return None
    adapter = experiment.make_model(0)
    for name, target in adapter.arrays().items():
        target[...] = arrays[name]
    data = LocalData(ArrayShard(train=triggered, validation=triggered))
    found = experiment.task.evaluate(adapter.model, data).get("accuracy")
    return None if found is None else float(found)
