"""What a simulation is of: the experiment as its author would build it at home, for sites that are simulated.

The plan's sites are those simulated, all of whom join but for those that a script holds back; the data is divided among
them by the plan's seed.
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.aggregation.registry import trusted_site
from federation.algorithms import Algorithm, load_algorithm
from federation.errors import PlanError
from federation.plan import Plan
from federation.simulation.devices import choose_device, device_of, placed
from federation.simulation.hostile import Threat, threat_of
from federation.simulation.population import check_data, shards_of, site_names
from federation.simulation.run_folder import FORMAT
from federation.simulation.script import Script
from federation.simulation.times import TimeModel
from federation.training.experiment import Built, Experiment
from federation.training.importing import code_digest, load_experiment

if TYPE_CHECKING:
    from federation.attacks import Attack
    from federation.data.shard import Shard
    from federation.names import SiteName
    from federation.simulation.launching import Crew


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A simulation, ready to start.

    Attributes:
        experiment: on its device, with the plan of the simulated sites.
        built: spec and first model.
        algorithm: the method.
        shards: of each site, in name order.
        script: failures, losses, delays, late joiners.
        times: what takes how long.
        enforces_deadlines: those of the plan hold, in simulated time.
        crew: who does the work.
        device: where, if one was asked for.
        source: the experiment's folder, if it came from one.
        threat: who is hostile, and how; None: nobody.
    """

    experiment: Experiment
    built: Built
    algorithm: Algorithm
    shards: dict[SiteName, Shard]
    script: Script
    times: TimeModel
    enforces_deadlines: bool
    crew: Crew
    device: str | None
    source: Path | None
    threat: Threat | None


def prepare(
    experiment: Experiment | Path | str,
    *,
    sites: int | Sequence[str],
    data: Any,
    partition: str,
    sample: int | None,
    crew: Crew,
    seed: int | None,
    script: Script | None,
    times: TimeModel | None,
    changes: Mapping[str, Any],
    attack: Attack | str | None,
    hostile: int | Sequence[str],
) -> Setting:
    """Build an experiment for simulated sites; arguments and errors as `federation.simulation.running.simulate`."""
    source = None if isinstance(experiment, Experiment) else Path(experiment)
    loaded = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    names, told = site_names(sites), script or Script()
    if crew.workers < 1:
        raise PlanError(f"{crew.workers} workers; give at least 1")
    device = choose_device(crew.device)
    loaded = copy.copy(placed(loaded, device, is_asked=crew.device != "auto"))
    loaded.plan = _plan_of(loaded.plan, len(names), told, sample, seed, changes)
    if loaded.algorithm is not None and loaded.plan.algorithm != loaded.algorithm.name:
        loaded.algorithm = None  # `changes` chose another
    _check_script(told, names)
    threat = threat_of(attack, hostile, names)
    _limit_torch(loaded.plan.threads)
    built = loaded.build()
    _check_trusted(built.spec.plan, names)
    shards = shards_of(loaded, names, data, partition, built.spec.plan.seed)
    check_data(built.spec, shards)
    algorithm = load_algorithm(built.spec.plan, loaded.algorithm)
    return Setting(
        experiment=loaded,
        built=built,
        algorithm=algorithm,
        shards=shards,
        script=told,
        times=times or TimeModel(),
        enforces_deadlines=times is not None or script is not None or algorithm.ends_at_deadline,
        crew=crew,
        device=device,
        source=source,
        threat=threat,
    )


def _plan_of(
    plan: Plan, sites: int, script: Script, sample: int | None, seed: int | None, changes: Mapping[str, Any]
) -> Plan:
    """Return the plan with the simulated sites as its own: all of them join, but for those a script holds back."""
    late = sum(1 for number in script.join_round.values() if number > 1)
    if changes.get("sites", sites) != sites:
        raise PlanError(
            f"the plan's sites are those simulated, {sites}, and not {changes['sites']!r}: give --sites (sites=...) "
            "instead of changing the plan's"
        )
    values = _changed(plan, changes)
    values["sites"] = max(sites - late, 1)
    values["minimum_sites"] = min(int(values["minimum_sites"]), values["sites"])
    if sample is not None:
        values["sample"] = sample
    if seed is not None:
        values["seed"] = seed
    return Plan(**values)


def _changed(plan: Plan, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan's fields with changes: of whole fields, or of an entry of one, such as ``options.mu``.

    Options of a method, or of a rule, that is changed for another are not those of the other.
    """
    values = {**plan.model_dump(), **{name: value for name, value in changes.items() if "." not in name}}
    for choice, options in (("algorithm", "options"), ("rule", "rule_options")):
        if values[choice] != getattr(plan, choice) and options not in changes:
            values[options] = {}
    for name, value in changes.items():
        field, dot, entry = name.partition(".")
        if dot:
            before = values.get(field)
            values[field] = {**(before if isinstance(before, dict) else {}), entry: value}
    return values


def _check_script(script: Script, names: Sequence[SiteName]) -> None:
    unknown = sorted(script.join_round.keys() - set(names))
    if unknown:
        raise PlanError(f"the script makes {unknown[0]!r} join, but sites are {names[0]} to {names[-1]}")
    for pattern in (pattern for rule in script.rules for pattern in rule.sites):
        if not fnmatch.filter(names, pattern):
            raise PlanError(f"the script's pattern {pattern!r} matches no site; they are {names[0]} to {names[-1]}")


def _check_trusted(plan: Plan, names: Sequence[SiteName]) -> None:
    trusted = trusted_site(plan)
    if trusted is not None and trusted not in names:
        raise PlanError(
            f"rule {plan.rule!r} trusts site {trusted!r}, which is none of the sites, {names[0]} to {names[-1]}: no "
            "round could be aggregated; name one of them, in rule_options or in sites"
        )


def _limit_torch(threads: int) -> None:
    """Keep torch from starting threads here: children are made by fork, which copies none of them."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def describe(setting: Setting, *, partition: str, data: Any, label: str, command: str) -> dict[str, Any]:
    """Return what the run folder says of a simulation from its start on."""
    spec = setting.built.spec
    source = data if data is not None else setting.experiment.data
    named = source if isinstance(source, str) else getattr(source, "__qualname__", type(source).__name__)
    conditions = {
        "code": "" if setting.source is None else code_digest(setting.source),
        "script": str(setting.script),
        "deadlines": setting.enforces_deadlines,
        "device": device_of(setting.experiment),
        **asdict(setting.times),
    }
    return {
        "format": FORMAT,
        "kind": "simulated",
        "name": spec.name,
        "digest": _digest_of(setting, partition, named, conditions),
        "spec": spec.model_dump(mode="json"),
        "seed": spec.plan.seed,
        "sites": list(setting.shards),
        "partition": partition if not isinstance(data, Mapping) else "",
        "data": named,
        "conditions": conditions,
        "command": command,
        "software": f"federation {version('federation')}",
        "label": label,
        "outcome": "",
        **_threat_facts(setting.threat),
    }


def _threat_facts(threat: Threat | None) -> dict[str, Any]:
    if threat is None:
        return {}
    return {"attack": threat.attack.spec, "hostile": sorted(threat.sites)}


def _digest_of(setting: Setting, partition: str, data: str, conditions: Mapping[str, Any]) -> str:
    """Name everything that decides the result; workers and executor do not."""
    parts = [
        setting.built.spec.digest.hex(),
        partition,
        data,
        list(setting.shards),
        repr(setting.script),
        conditions,
        *([repr(setting.threat.attack), sorted(setting.threat.sites)] if setting.threat else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
