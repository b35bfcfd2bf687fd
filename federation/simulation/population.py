"""Who takes part in a simulation: the sites' names, and what data each has.

Names are ``site-000``, ``site-001``, … as wide as the last, in the order of the parts; or those given.
The whole dataset is divided by `federation.data.part.divide`, the function an envoy's `PartShard` calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from federation.data.loading import check_shapes, load_shard
from federation.data.part import divide, labels_of
from federation.data.partitions.report import PartitionReport
from federation.errors import PlanError
from federation.names import SiteName, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.data.shard import Shard
    from federation.plan import ExperimentSpec
    from federation.training.experiment import Experiment

_WIDTH = 3


def site_names(sites: int | Sequence[str]) -> tuple[SiteName, ...]:
    """Return the names of the simulated sites, in name order.

    Raises:
        PlanError: none, or one twice.
        InvalidNameError: one is no name.
    """
    if isinstance(sites, int):
        if sites < 1:
            raise PlanError(f"{sites} sites; simulate at least 1")
        width = max(_WIDTH, len(str(sites - 1)))
        return tuple(SiteName(f"site-{number:0{width}d}") for number in range(sites))
    names = sorted(SiteName(check_name(name, "site name")) for name in sites)
    if not names or len(set(names)) != len(names):
        raise PlanError(f"site names are {names}; give at least one, and each once")
    return tuple(names)


def shards_of(
    experiment: Experiment,
    names: Sequence[SiteName],
    data: Shard | Mapping[str, Shard] | Callable[[], Shard] | str | None,
    partition: str,
    seed: int,
) -> dict[SiteName, Shard]:
    """Return the data of each site.

    Args:
        experiment: names the whole dataset, if `data` does not.
        names: the sites, in name order.
        data: the whole, a callable or ``"module:Class[:json]"`` that gives it; or each site's shard by name.
        partition: how the whole is divided, such as ``"dirichlet:0.3"``.
        seed: decides the division.

    Raises:
        PlanError: there is no data, a site has none, or it cannot be divided so.
        ShardError: the data cannot be loaded.
    """
    if isinstance(data, Mapping):
        missing = [name for name in names if name not in data]
        if missing:
            raise PlanError(f"data has no shard for site {missing[0]!r}; give one for each of the {len(names)} sites")
        return {name: data[name] for name in names}
    source = experiment.data if data is None else data
    if source is None:
        raise PlanError(
            f"experiment {experiment.name!r} names no data; give --data module:Class (a shard with the whole dataset), "
            "or Experiment(data=...)"
        )
    whole = load_whole(source)
    return dict(zip(names, divide(whole, partition, len(names), seed), strict=True))


def load_whole(source: Shard | Callable[[], Shard] | str) -> Shard:
    """Return a shard with the whole dataset.

    Raises:
        ShardError: the factory cannot be loaded or fails.
        PlanError: the options behind the second colon are not a JSON object.
    """
    if isinstance(source, str):
        import json

        module, _, rest = source.partition(":")
        name, _, options = rest.partition(":")
        try:
            arguments = json.loads(options) if options else {}
        except ValueError as error:
            raise PlanError(f"the options of {module}:{name} are not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise PlanError(
                f'the options of {module}:{name} are {options!r}; give a JSON object, such as {{"seed": 1}}'
            )
        return load_shard("whole", f"{module}:{name}", arguments)
    if callable(source) and not hasattr(source, "train"):
        return source()
    return source  # type: ignore[return-value]  # a shard: it has `train`


def check_data(spec: ExperimentSpec, shards: Mapping[SiteName, Shard]) -> None:
    """Check that the sites' data fits the experiment.

    Raises:
        ShardError: a shape differs.
    """
    for name, shard in shards.items():
        check_shapes(name, shard, spec.sample_shape, spec.target_shape)


def report_of(shards: Mapping[SiteName, Shard]) -> PartitionReport | None:
    """Return which site has how many examples of each class; None where targets are not classes."""
    try:
        labels = {str(name): labels_of(shard.train) for name, shard in shards.items()}
    except PlanError:
        return None
    if any(mine.dtype.kind not in "iub" for mine in labels.values()):
        return None
    return PartitionReport.of_sites(labels)
