"""Which methods there are, and which experiments they accept.

1. A method's server half runs in the aggregator, so it is built in or a plugin that the operator installed (entry-point
   group ``federation.algorithms``); built-in names cannot be taken. In simulation any `Algorithm` object serves.
2. `check` is asked wherever an experiment enters: when it is built, at the director, at the aggregator. It refuses what
   would be wrong, with the reason and what to do instead.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from federation.aggregation import registry as rules
from federation.algorithms.algorithm import Algorithm
from federation.compression import load_codec
from federation.compression.dgc import Dgc
from federation.compression.powersgd import PowerSgd
from federation.errors import PlanError
from federation.plan.plugins import Catalogue, load_plugin
from federation.rounds.quarantine import check_quarantine
from federation.rounds.sampling import check_sampler, takes_count
from federation.rounds.schedules import check_schedules
from federation.rounds.shares import check_max_share, fewest_updates
from federation.tensors import TensorRole

if TYPE_CHECKING:
    from federation.plan import ExperimentSpec, Plan

ENTRY_POINT_GROUP = "federation.algorithms"

BUILT_IN: Catalogue[type[Algorithm]] = Catalogue(
    "federation.algorithms",
    {
        "fedavg": "fedavg:FedAvg",
        "fedsgd": "fedsgd:FedSgd",
        "fedprox": "fedprox:FedProx",
        "fixed_time": "fixed_time:FixedTime",
        "site_momentum": "site_momentum:SiteMomentum",
        "scaffold": "scaffold:Scaffold",
        "fednova": "fednova:FedNova",
        "fedavgm": "fedopt:FedAvgM",
        "fedadagrad": "fedopt:FedAdagrad",
        "fedadam": "fedopt:FedAdam",
        "fedyogi": "fedopt:FedYogi",
        "feddyn": "feddyn:FedDyn",
        "qfedavg": "qfedavg:QFedAvg",
        "fedcurv": "fedcurv:FedCurv",
        "dcgd": "dcgd:Dcgd",
        "diana": "diana:Diana",
        "marina": "marina:Marina",
        "ef21": "ef21:Ef21",
        "ditto": "ditto:Ditto",
        "fedper": "partial:FedPer",
        "fedrep": "partial:FedRep",
        "fedbn": "partial:FedBN",
        "personal_fedavg": "personal_fedavg:PersonalFedAvg",
        "per_fedavg": "per_fedavg:PerFedAvg",
        "mixing": "mixing:Mixing",
        "fedasync": "fedasync:FedAsync",
        "fedbuff": "fedbuff:FedBuff",
        "stale": "stale:StaleCompensation",
    },
)
"""Every built-in method by name, in the order of the documentation."""


def algorithm_names() -> list[str]:
    """Return the names a plan may use here: ours and those of installed plugins."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))})


def load_algorithm(plan: Plan, own: Algorithm | None = None) -> Algorithm:
    """Return the plan's method with the plan's options.

    Args:
        plan: names the method and its options.
        own: the experiment's own method object, where one is at hand (simulation, trainer); it serves if it has the
            plan's name.

    Raises:
        PlanError: there is no such method here, or its options are not valid.
        ConfigurationError: a plugin's entry point cannot be loaded.
    """
    name = plan.algorithm
    if name in BUILT_IN:
        return BUILT_IN[name](**plan.options)
    if own is not None and own.name == name:
        return type(own)(**plan.options)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return load_plugin(entry, Algorithm, "algorithm")(**plan.options)
    names = algorithm_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise PlanError(
        f"there is no algorithm {name[:80]!r} here, only {', '.join(names)}{hint} A method of your own runs on a "
        f"server only as a plugin its operator installed (entry point group {ENTRY_POINT_GROUP}); simulate it meanwhile"
    )


def check_own(method: type[Algorithm]) -> None:
    """Refuse a method of one's own that a plan could not name: it would run as another, or not at all.

    Raises:
        PlanError: it has no name, or inherits or takes one of ours.
    """
    name = getattr(method, "name", None)
    if not name:
        raise PlanError(f"algorithm {method.__name__} has no name: set the class attribute name, such as 'my_method'")
    if BUILT_IN.get(name, method) is not method:
        raise PlanError(
            f"algorithm {method.__name__} is called {name!r}, which is {BUILT_IN[name].__name__} of this release and "
            "would run in its place: set the class attribute name to one of its own"
        )


def check(spec: ExperimentSpec, own: Algorithm | None = None) -> None:
    """Refuse an experiment whose method, options, codecs and rule do not fit together.

    Args:
        spec: the experiment.
        own: its own method object, where one is at hand.

    Raises:
        PlanError: says what does not fit and what to change.
    """
    plan = spec.plan
    algorithm = load_algorithm(plan, own)
    name = algorithm.name
    if (spec.uplink, spec.downlink) != algorithm.payload_rows(plan):
        raise PlanError(
            f"the experiment was packed for another version of algorithm {name!r}: its payload rows differ; "
            "pack it again with this release"
        )
    check_sampler(plan)
    check_schedules(plan)
    check_max_share(plan, is_asynchronous=algorithm.mode == "buffer")
    is_round = algorithm.mode == "rounds"
    check_quarantine(plan, updates=(plan.sample or plan.sites) if is_round else algorithm.buffer_size(plan))
    _check_compression(plan, algorithm)
    _check_rule(spec, algorithm)
    if algorithm.sets_server_step and (plan.server_learning_rate != 1 or plan.server_schedule != "constant"):
        raise PlanError(
            f"algorithm {name!r} sets the server's step itself: leave server_learning_rate at 1 and server_schedule "
            "constant"
        )
    if algorithm.has_own_optimizer and plan.optimizer_state != "reset":
        raise PlanError(
            f"algorithm {name!r} does not train with the task's optimizer, whose state optimizer_state "
            f"{plan.optimizer_state!r} would carry from round to round: set optimizer_state = 'reset'"
        )
    algorithm.check(spec)


def _check_rule(spec: ExperimentSpec, algorithm: Algorithm) -> None:
    """Refuse a rule that the method breaks, or that the plan's rounds are too small for."""
    plan = spec.plan
    is_plain = plan.rule == "mean" and not plan.pre_aggregation
    if algorithm.only_mean and not is_plain:
        raise PlanError(
            f"algorithm {algorithm.name!r} sums what sites send and cannot stand behind rule {plan.rule!r}"
            f"{' with pre_aggregation' if plan.pre_aggregation else ''}; use rule 'mean' alone"
        )
    if algorithm.vectors and not is_plain:
        # The rule sees changes of the model. A hostile site that moves its change little would steer by the rest.
        raise PlanError(
            f"algorithm {algorithm.name!r} averages {', '.join(algorithm.vectors)} of the sites beside their changes, "
            f"and what rule {plan.rule!r}{' with pre_aggregation' if plan.pre_aggregation else ''} keeps out of the "
            "model would come in through that: use fedavg or site_momentum behind it, or rule 'mean' alone"
        )
    _refuse_what_the_rule_does_not_see(spec, is_plain=is_plain)
    is_asynchronous = algorithm.mode == "buffer"
    advice = (
        f"algorithm {algorithm.name!r} is asynchronous, and a step of it may be of a single update: choose a method of "
        "synchronous rounds"
        if is_asynchronous
        else _advise_more_updates(plan)
    )
    aggregation = rules.check(plan, fewest_updates(plan, is_asynchronous=is_asynchronous), advice)
    trusted = aggregation.rule.trusted_site
    if trusted is not None and (is_asynchronous or plan.sample is not None or not takes_count(plan.sampler)):
        raise PlanError(
            f"rule {plan.rule!r} trusts site {trusted!r}, which must then be asked in every round: use a method of "
            "synchronous rounds, and leave out sample and sampler"
        )
    if aggregation.rule.state:
        _refuse_half_precision(spec, f"rule {plan.rule!r}", "another rule")


def _advise_more_updates(plan: Plan) -> str:
    """Return how a round of a plan could need so many updates that its rule stands `byzantine`."""
    needed = rules.fewest_enough(plan)
    if needed is None:
        return (
            "raise quorum (or, without one, minimum_sites), and sites and sample where it would be above them; or "
            "lower byzantine"
        )
    room = [
        f"{field} ({value})"
        for field, value in (("sites", plan.sites), ("sample", plan.sample))
        if value is not None and value < needed
    ]
    if plan.sites is None and plan.quorum is not None and plan.minimum_sites < needed:
        room.insert(0, f"minimum_sites ({plan.minimum_sites})")
    also = f", and with it {' and '.join(room)}, which it may not be above" if room else ""
    return f"raise quorum (or, without one, minimum_sites) to {needed}{also}; or lower byzantine"


def _refuse_what_the_rule_does_not_see(spec: ExperimentSpec, *, is_plain: bool) -> None:
    """Refuse what is averaged beside the parameters, and would let one site past the rule."""
    plan = spec.plan
    if is_plain:
        return
    past = f"what rule {plan.rule!r}{' with pre_aggregation' if plan.pre_aggregation else ''} keeps out of the model"
    if plan.optimizer_state == "aggregate":
        raise PlanError(
            f"optimizer_state 'aggregate' is the mean of what sites send, whatever the rule, and {past} would come in "
            "through that: use optimizer_state 'reset' or 'keep'"
        )
    buffers = [row.name for row in spec.tensors if row.role is TensorRole.BUFFER]
    if buffers:
        shown = ", ".join(repr(name) for name in buffers[:4]) + (", ..." if len(buffers) > 4 else "")
        raise PlanError(
            f"the buffers {shown} are averaged whatever the rule, and {past} would come in through them, for one site "
            'can put them anywhere: list them in local, for example local=("*running_*", "*num_batches_tracked")'
        )


def _refuse_half_precision(spec: ExperimentSpec, who: str, instead: str) -> None:
    for tensor in spec.schema_.parameters:
        if tensor.dtype.widened is not tensor.dtype:
            raise PlanError(
                f"{who} keeps a vector per parameter and needs float32 or float64; tensor {tensor.name!r} is "
                f"{tensor.dtype.value}: widen it or use {instead}"
            )


def _check_compression(plan: Plan, algorithm: Algorithm) -> None:
    """Refuse codecs that break the method, and error feedback where there is none to feed back or too much."""
    name, codec = algorithm.name, load_codec(plan.compression)
    _check_downlink(plan, algorithm)
    if plan.error_feedback and algorithm.has_own_feedback:
        raise PlanError(f"error_feedback must be off: algorithm {name!r} carries its own")
    if plan.error_feedback and codec.is_unbiased:
        raise PlanError(
            f"compression {plan.compression!r} is unbiased; error_feedback is for biased codecs: leave it out"
        )
    if algorithm.needs_unbiased and not codec.is_unbiased:
        raise PlanError(
            f"algorithm {name!r} needs an unbiased codec, and {plan.compression!r} is biased: use ef21, or a "
            "codec such as 'rand_k:0.1'"
        )
    if algorithm.has_momentum and isinstance(codec, Dgc) and codec.momentum:
        raise PlanError(
            f"compression {plan.compression!r} adds changes up with momentum, and so does algorithm {name!r}: steps "
            f"would be momentum of momentum; write it 'dgc:{codec.q:g},0', or use fedavg"
        )
    # PowerSGD's Q is only a better start of the next round's.
    if algorithm.has_own_feedback and codec.takes_own_feedback and not isinstance(codec, PowerSgd):
        raise PlanError(
            f"compression {plan.compression!r} keeps a feedback of its own, and so does algorithm {name!r}: use dcgd "
            "or fedavg with it, or another codec"
        )


def _check_downlink(plan: Plan, algorithm: Algorithm) -> None:
    """Refuse compression of what the server sends where the model that sites hold must be the server's own."""
    codec = load_codec(plan.downlink)
    if plan.downlink == "identity":
        return
    name, advice = algorithm.name, "leave downlink out"
    # PowerSGD's Q is only a better start of the next round's: without it each round draws one.
    if codec.takes_own_feedback and not isinstance(codec, PowerSgd):
        raise PlanError(
            f"downlink {plan.downlink!r}: momentum correction is for gradients that sites send; what a downlink loses "
            "comes with its next step: use top_k or stc"
        )
    if algorithm.mode == "buffer":
        raise PlanError(
            f"algorithm {name!r} is asynchronous: sites take models at any time, and no step leads from what one holds "
            f"to the next; {advice}"
        )
    if algorithm.needs_exact_model:
        raise PlanError(
            f"algorithm {name!r} {algorithm.needs_exact_model}, and downlink {plan.downlink!r} lets sites hold "
            f"another: {advice}"
        )
