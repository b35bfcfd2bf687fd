"""FedDyn: sites whose own minimisers agree with the federation's."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, uniform
from federation.compression import load_codec, payload_damping
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound, Step
    from federation.plan import ExperimentSpec

_LEAST_KEPT = 0.5
"""α of a biased codec, 1/(1 + ω) of an unbiased one; on least squares it diverges from about a quarter down."""


class FedDyn(Algorithm):
    r"""A dynamic regulariser makes the fixed point of local training the minimiser of the whole.

    Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: "Federated Learning Based on Dynamic Regularization",
    ICLR 2021, arXiv:2111.04263, algorithm 1.

    $$\theta_k = \arg\min_\theta F_k(\theta) - \langle \lambda_k, \theta \rangle +
    \frac{\alpha}{2} \lVert \theta - x \rVert^2, \qquad \lambda_k \leftarrow \lambda_k - \alpha(\theta_k - x)$$

    $$h \leftarrow h - \frac{\alpha}{N} \sum_S (\theta_k - x), \qquad
    x \leftarrow \frac{1}{|S|} \sum_S \theta_k - \frac{h}{\alpha}$$

    h is the mean of all λ_k, always: unsampled sites keep theirs, N counts them, and a late joiner starts with λ_k = 0
    while h is rescaled by N_old/N. The more exactly sites solve their problem the better: give them enough local work.

    h adds up all that sites send: a codec that may lose or add more than half of it (α < 1/2, ω > 1) makes it diverge,
    and is refused.

    Example:
        ``Plan(algorithm="feddyn", options={"alpha": 0.01}, local_epochs=5)``

    Attributes:
        alpha: α > 0; the paper uses 0.1, 0.01 and 0.001.
    """

    name: ClassVar[str] = "feddyn"
    title: ClassVar[str] = "FedDyn"
    source: ClassVar[str] = "arXiv:2111.04263, algorithm 1"
    slots: ClassVar[tuple[str, ...]] = ("correction",)
    rescaled: ClassVar[frozenset[str]] = frozenset({"correction"})
    site_state: ClassVar[tuple[str, ...]] = ("multiplier",)
    only_mean: ClassVar[bool] = True
    sets_server_step: ClassVar[bool] = True
    needs_exact_model: ClassVar[str] = "adds up in h how far sites are from the server's model"

    alpha: float = Field(default=0.01, gt=0)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse codecs under which h and λ_k diverge.

        Raises:
            PlanError: the codec may lose, or add, more than half of a change.
        """
        codec, schema = load_codec(spec.plan.compression), spec.schema_.parameters.widened
        kept = payload_damping(schema, codec) if codec.is_unbiased else codec.alpha(schema.elements)
        # Casts promise no α since tiny numbers may vanish; of a change as a whole they lose next to nothing.
        if kept < _LEAST_KEPT and (codec.is_unbiased or not codec.is_elementwise):
            raise PlanError(
                f"algorithm 'feddyn' adds up what sites send, and diverges under compression {spec.plan.compression!r} "
                "of this model, which may change more than half of it: use 'natural', 'int8:4096' or 'eden:2', or "
                "scaffold, which stands every codec"
            )

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self.alpha)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server(self.alpha)


class _Client(ClientHalf):
    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def work(self, round: ClientRound) -> None:
        """Descend along ∇F_k(θ) − λ_k + α(θ − x); then λ_k ← λ_k − α(θ_k − x)."""
        x, alpha = round.start, self._alpha
        lambda_k = round.state.setdefault("multiplier", x.zeros_like())

        def local_gradient(step: Step) -> None:
            step.gradients += alpha * (step.parameters - x) - lambda_k

        round.problem.run(gradient=local_gradient)
        # θ_k − x as the server decodes it, so that h stays the mean of all λ_k.
        round.state["multiplier"] = lambda_k - alpha * round.send_change()


class _Server(ServerHalf):
    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        return {"share": self._alpha * len(round.sites) / round.total}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        h, mean = tile.state["correction"], tile.mean["delta"]
        h -= scalars["share"] * mean
        tile.x += mean - h / self._alpha
