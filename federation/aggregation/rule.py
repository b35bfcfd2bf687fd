"""What a rule of aggregation is: its options, the sites it needs, and how it makes one vector of many.

Rules, in order:

1. A rule is data and pure: its fields are ``plan.rule_options``, and it reads tiles and yields tiles. Time and files
   are not its own; what is random or lasts beyond a round is handed to it in a `RuleContext`.
2. It yields every tile of the source once, in order. It may read any tile any number of times, before and between.
3. Its result depends on the names of the sites and on their elements, and is the same bytes for any number of threads
   (but for CAF and SMEA of more than 128 sites: their eigenvectors' last bits follow the threads of the BLAS library);
   never on the order of arrival, and only the mean looks at weights: how many examples it has is the sender's word.
4. The model is one vector: what a rule decides of a site it decides of all tiles.
5. A condition, such as 2f + 2 < n, is checked when an experiment is submitted, for the fewest updates a round may close
   with, and again in the round, which then fails closed.

`federation.aggregation.registry` says which rules there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from federation.errors import InvalidNameError, PlanError
from federation.names import check_name
from federation.plan.validation import explain_options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from federation.aggregation.tiles import Array, Tile, TileSource
    from federation.names import SiteName
    from federation.plan import OptionValue


class NeverEnoughError(PlanError):
    """What a plan asks of its rule is too much, or does not go together, whatever the number of updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReport:
    """What a rule says of a round after its last tile.

    Attributes:
        weights: what each site's vector was multiplied by in the aggregate, where the rule works so: 1 for Krum's pick
            and 0 for all others, w_i of the geometric median; after clipping and mixing, seen from the site's own
            vector. None for rules that decide coordinate by coordinate.
        note: one sentence for the report.
        trust: how much each site counted, 0 or more, where `weights` do not say so: where vectors are brought to one
            length first, a short one is multiplied by much and counts no more for it.
    """

    weights: Mapping[SiteName, float] | None
    note: str
    trust: Mapping[SiteName, float] | None = None

    @property
    def counted(self) -> Mapping[SiteName, float] | None:
        """How much each site counted beside the others: its trust, or its weight; None: the rule says neither."""
        return self.weights if self.trust is None else self.trust


class StateReader(Protocol):
    """A vector that a rule kept from the round before, with the layout of the parameters."""

    def read(self, tile: Tile, out: Array) -> None:
        """Fill `out`, of the tile's dtype, with its elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleContext:
    """What a rule is told of the round beside the updates.

    Attributes:
        byzantine: f, hostile sites to be stood.
        random: returns the round's random stream for a purpose; equal purposes, equal streams.
        state: the rule's vectors of the round before, by name; one that is not there is zero.
        threads: most threads to compute with; None: one per core, as far as memory allows (`columns.threads_for`). The
            result does not depend on it.
    """

    byzantine: int = 0
    random: Callable[[str], Random] = Random
    state: Mapping[str, StateReader] = field(default_factory=dict)
    threads: int | None = None


DEFAULT_CONTEXT = RuleContext()


class Combines(Protocol):
    """Anything that combines a source: a rule by itself, or behind its pre-aggregations for one round."""

    def combine(self, source: TileSource) -> Iterator[tuple[Tile, Array]]:
        """Yield each tile with its combined elements as float64, in an array that the next step may overwrite.

        Raises:
            ValueError: there is no site.
            PlanError: there are too few sites, or too many.
        """


def _check_site(text: str) -> str:
    """Check a name as a validator must: pydantic gathers ValueErrors."""
    try:
        return check_name(text, "site name")
    except InvalidNameError as error:
        raise ValueError(str(error)) from error


SiteOption = Annotated[str, AfterValidator(_check_site)]
"""An option that is the name of a site."""


class AggregationRule(BaseModel, ABC):
    """One rule. Subclass it in a file of its own; the docstring states claim, formula and options.

    Attributes:
        name: as in ``plan.rule``.
        title: as its authors write it.
        source: paper, and place in it.
        condition: on n vectors of which f are hostile, as written in messages and documentation.
        needs_byzantine: whether it must be told f: without it, it would be the mean or nearly.
        is_bounded: whether it takes only so many vectors: the plan's `sample` must then say how many there can be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    condition: ClassVar[str] = "1 ≤ n"
    needs_byzantine: ClassVar[bool] = False
    is_bounded: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        """Validate the options.

        Raises:
            PlanError: one is unknown or out of range; the text names each.
        """
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise PlanError(explain_options(f"rule_options of rule {self.name!r}", type(self), error)) from error

    @property
    def state(self) -> tuple[str, ...]:
        """Vectors it keeps between rounds, each with the layout of the parameters and zero at first."""
        return ()

    @property
    def trusted_site(self) -> SiteName | None:
        """The site without whose update it cannot combine; None for most rules."""
        return None

    def options(self) -> dict[str, OptionValue]:
        """Return the options as ``plan.rule_options`` holds them; those that are None are left out."""
        return self.model_dump(exclude_none=True)

    def fewest(self, byzantine: int) -> int:
        """Return the fewest vectors with which `condition` holds for f hostile ones."""
        return 1

    def check(self, vectors: int, byzantine: int) -> None:
        """Check that the rule can stand `byzantine` hostile ones among so many vectors.

        Raises:
            PlanError: it cannot; the text says what it needs.
        """
        needed = self.fewest(byzantine)
        if vectors < needed:
            raise PlanError(
                f"rule {self.name!r} stands byzantine = {byzantine} only where {self.condition}: it needs {needed} "
                f"updates or more and has {vectors}"
            )

    def combine(
        self, source: TileSource, context: RuleContext = DEFAULT_CONTEXT
    ) -> Generator[tuple[Tile, Array], None, RuleReport]:
        """Yield each tile of the source with its combined elements, and return the report.

        Args:
            source: the updates; float tiles only, finite.
            context: the round.

        Yields:
            The tile and its elements as float64, in an array that the rule may overwrite at the next step.

        Raises:
            ValueError: there is no site, or (the mean) no site with a weight above 0.
            PlanError: as `check`.
        """
        if not source.sites:
            raise ValueError("there is no site to aggregate")
        self.check(len(source.sites), context.byzantine)
        return (yield from self._combine(source, context))

    @abstractmethod
    def _combine(self, source: TileSource, context: RuleContext) -> Generator[tuple[Tile, Array], None, RuleReport]:
        """Do what `combine` says, for sites that are enough."""

    def place_of_trusted(self, source: TileSource) -> int:
        """Return the index of the trusted site.

        Raises:
            PlanError: it is not in this round.
        """
        trusted = self.trusted_site
        if trusted is None or trusted not in source.sites:
            raise PlanError(
                f"rule {self.name!r} trusts site {trusted!r}, whose update is not among the "
                f"{len(source.sites)} of this round: it is not aggregated"
            )
        return list(source.sites).index(trusted)

    def advance(self, state: Mapping[str, Array], aggregate: Array) -> dict[str, Array]:
        """Return the next elements of each vector of `state`, given the present ones and the aggregate, all float64."""
        return {}
