"""What a method is: its options, its two halves, and what travels for it.

1. An `Algorithm` is data and two factories. Its fields are ``plan.options``; class attributes say what it keeps and
   sends, and the plan's payload rows follow from them, so a collaborator needs no code of the method.
2. What a method keeps per parameter, at the server or on the wire, has exactly the schema of the federated parameters.
3. Combinations that are not sound are refused at submission (`check`), never weakened in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf
from federation.errors import PlanError
from federation.plan import PayloadRow, TensorRow
from federation.plan.validation import explain_options
from federation.tensors import DType, TensorRole

if TYPE_CHECKING:
    from federation.algorithms.client import OptimizerChoice
    from federation.plan import ExperimentSpec, OptionValue, Plan

SCALARS = "scalars"
"""The payload that carries `Algorithm.scalars`: float64 tensors without dimensions."""


class Algorithm(BaseModel):
    """One method. Subclass it in a file of its own; the docstring states claim, paper, formula, example, options.

    Attributes:
        name: as in ``plan.algorithm``.
        title: as its authors write it.
        source: paper and place in it, such as ``arXiv:1910.06378, algorithm 1``.
        slots: server state, each one vector that starts as `ServerHalf.initial` says.
        rescaled: those slots that are means over all N sites; multiplied by N_old/N when a site joins.
        broadcast: slots that are sent with the model.
        vectors: payloads sites send beside ``delta``, compressed like it.
        scalars: numbers sites send, in one payload ``scalars``.
        site_state: names a site keeps in `ClientRound.state`; a late joiner starts without them.
        needs_norms: whether the server half needs ‖Δ_i‖.
        needs_base: whether ``delta`` must be rebased onto the current model: x_τ − x + Δ_i.
        has_own_feedback: the method absorbs compression error itself; ``plan.error_feedback`` must stay off.
        no_feedback: those vectors that get no error feedback: changes of what both ends keep, such as c_i⁺ − c_i, since
            what compression lost of one is in the next already and, fed back too, they diverge; and what the server
            takes afresh each round, where the loss of an earlier one would only be wrong.
        has_momentum: changes add up over rounds, at the server or at a site; a codec with momentum would do it twice.
        needs_unbiased: whether a biased codec would break it.
        only_mean: whether a rule other than the mean would break it.
        sets_server_step: its formula fixes the server's step, so η_g must stay 1.
        needs_exact_model: why sites must train from the server's own model, so that what it sends is not compressed;
            empty: they need not.
        personal: whether it evaluates personal models too, as ``personal_*``.
        mode: ``rounds``, or ``buffer`` for asynchronous methods: a step whenever `buffer_size` updates have arrived.
        ends_at_deadline: in mode ``buffer``: a step also at the plan's deadline, with what has arrived.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    slots: ClassVar[tuple[str, ...]] = ()
    rescaled: ClassVar[frozenset[str]] = frozenset()
    broadcast: ClassVar[tuple[str, ...]] = ()
    vectors: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[str, ...]] = ()
    site_state: ClassVar[tuple[str, ...]] = ()
    needs_norms: ClassVar[bool] = False
    needs_base: ClassVar[bool] = False
    has_own_feedback: ClassVar[bool] = False
    no_feedback: ClassVar[frozenset[str]] = frozenset()
    has_momentum: ClassVar[bool] = False
    needs_unbiased: ClassVar[bool] = False
    only_mean: ClassVar[bool] = False
    sets_server_step: ClassVar[bool] = False
    needs_exact_model: ClassVar[str] = ""
    personal: ClassVar[bool] = False
    mode: ClassVar[Literal["rounds", "buffer"]] = "rounds"
    ends_at_deadline: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        """Validate the options.

        Raises:
            PlanError: one is unknown or out of range; the text names each.
        """
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise PlanError(explain_options(f"options of algorithm {self.name!r}", type(self), error)) from error

    @property
    def needs_problem(self) -> bool:
        """Whether the task must offer ``problem()``: False for methods that change the server half only."""
        return type(self).client is not Algorithm.client

    @property
    def has_own_optimizer(self) -> bool:
        """Whether sites train with an optimizer of the method's in place of the task's, or with none."""
        return False

    def options(self) -> dict[str, OptionValue]:
        """Return the options as ``plan.options`` holds them; those that are None are left out."""
        return self.model_dump(exclude_none=True)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse what the method cannot soundly do with this experiment; `registry.check` holds the common rules.

        Raises:
            PlanError: says what to change.
        """

    def check_optimizer(self, choice: OptimizerChoice) -> None:
        """Refuse a local optimizer for which the method's formula does not hold; asked where the task names its own.

        Raises:
            PlanError: says which to use instead.
        """

    def client(self) -> ClientHalf:
        """Return the client half."""
        return ClientHalf()

    def server(self) -> ServerHalf:
        """Return the server half."""
        return ServerHalf()

    def payload_rows(self, plan: Plan) -> tuple[tuple[PayloadRow, ...], tuple[PayloadRow, ...]]:
        """Return what travels beyond model, ``delta`` and buffers: (uplink, downlink) of the signed spec."""
        uplink = [PayloadRow(name=name, like="parameters", codec=plan.compression) for name in self.vectors]
        if self.scalars:
            rows = tuple(
                TensorRow(name=name, dtype=DType.FLOAT64, shape=(), role=TensorRole.PARAMETER)
                for name in sorted(self.scalars)
            )
            uplink.append(PayloadRow(name=SCALARS, tensors=rows))
        return tuple(uplink), tuple(PayloadRow(name=name, like="parameters") for name in self.broadcast)

    def metric_names(self, metrics: tuple[str, ...]) -> tuple[str, ...]:
        """Return the metrics sites may report, given the task's own."""
        return (*metrics, *(f"personal_{name}" for name in metrics)) if self.personal else metrics

    def asks_all(self, spec: ExperimentSpec, round_number: int) -> bool:
        """Tell whether this round must ask every connected site, whatever the plan samples."""
        return False

    def buffer_size(self, plan: Plan) -> int:
        """Return K, the updates an asynchronous step waits for."""
        return 1

    def stalest(self) -> int | None:
        """Return the most steps that may lie between a site's task and its update; None: any number."""
        return None
