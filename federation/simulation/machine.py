"""The round machine of a simulation: the federation's own, where the run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from federation.aggregation.registry import trusted_site
from federation.data.shard import count_examples
from federation.names import RoundNumber
from federation.rounds import events, quarantine
from federation.rounds.asynchronous import machine_for
from federation.rounds.quarantine import Suspicion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.rounds.history import RoundRecord
    from federation.simulation.roles import Machine
    from federation.simulation.run_folder import Standpoint
    from federation.simulation.setting import Setting


def machine_of(setting: Setting, standpoint: Standpoint, records: Sequence[RoundRecord]) -> Machine:
    """Return the round machine of a simulation, not started.

    Args:
        setting: the simulation.
        standpoint: where it goes on.
        records: of the rounds before.
    """
    algorithm, spec = setting.algorithm, setting.built.spec
    return machine_for(
        spec.plan,
        algorithm.mode,
        _resume(setting, standpoint, records),
        asks_all=lambda number: algorithm.asks_all(spec, number),
        weights={name: count_examples(shard.train) for name, shard in setting.shards.items()},
        trusted=trusted_site(spec.plan),
        buffer=algorithm.buffer_size(spec.plan),
        max_staleness=algorithm.stalest(),
        ends_at_deadline=algorithm.ends_at_deadline,
    )


def _resume(setting: Setting, standpoint: Standpoint, records: Sequence[RoundRecord]) -> events.Resume:
    """Return where the machine goes on: with the very sites that were there, and with what is under way."""
    number, under_way = RoundNumber(standpoint.round + 1), standpoint.under_way
    there = tuple(sorted(site for site in setting.shards if standpoint.absent.get(site, 0) <= number))
    suspicion, plan = Suspicion(), setting.built.spec.plan
    for record in records:
        scores = {row.site: row.scores for row in record.sites}
        suspicion = quarantine.judge(
            plan.quarantine, suspicion, record.round, scores, trusted=trusted_site(plan), byzantine=plan.byzantine
        )
    return events.Resume(
        round=number,
        admitted=under_way.waiting,
        expected=there if standpoint.round else (),
        score=standpoint.score,
        suspicion=suspicion,
        asked=under_way.asked,
        training=under_way.training,
        knows_tasks=True,
        overdue=under_way.overdue,
    )
