"""FedPer, FedRep and FedBN: only a part of the model is federated."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.errors import PlanError
from federation.tensors import TensorRole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.algorithms.client import ClientRound
    from federation.plan import ExperimentSpec


class FedPer(Algorithm):
    r"""A common body and a head of each site's own, trained together.

    Arivazhagan, Aggarwal, Singh, Choudhary: "Federated Learning with Personalization Layers", arXiv:1912.00818,
    algorithms 1 and 2.

    $$(x_i, h_i) \leftarrow \text{SGD}(x, h_i; F_i), \qquad x \leftarrow x + \eta_g \frac{\sum_S p_i (x_i - x)}
    {\sum_S p_i}$$

    ``plan.local`` names the head h_i, which stays at the site and survives between rounds; a late joiner's is as
    the initial model's. All metrics are those of the site's own head.

    Example:
        ``Plan(algorithm="fedper", local=("head.*",))``
    """

    name: ClassVar[str] = "fedper"
    title: ClassVar[str] = "FedPer"
    source: ClassVar[str] = "arXiv:1912.00818, algorithms 1 and 2"

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse a plan without a local head.

        Raises:
            PlanError: every tensor is federated.
        """
        _require_head(self.name, spec)


class FedRep(Algorithm):
    r"""A common representation and a head of each site's own, trained in turn: first the head, then the body.

    Collins, Hassani, Mokhtari, Shakkottai: "Exploiting Shared Representations for Personalized Federated Learning",
    ICML 2021, arXiv:2102.07078, algorithm 1.

    $$h_i \leftarrow \text{SGD}(h_i; F_i(x, \cdot)), \quad \text{then} \quad x_i \leftarrow \text{SGD}(x; F_i(\cdot,
    h_i)), \qquad x \leftarrow x + \eta_g \frac{\sum_S p_i (x_i - x)}{\sum_S p_i}$$

    ``plan.local`` names the head, which stays at the site and survives between rounds; the plan's local work is the
    body's.

    Example:
        ``Plan(algorithm="fedrep", options={"head_epochs": 5}, local=("head.*",), local_epochs=1)``

    Attributes:
        head_epochs: passes over the local data for the head, before the body moves.
    """

    name: ClassVar[str] = "fedrep"
    title: ClassVar[str] = "FedRep"
    source: ClassVar[str] = "arXiv:2102.07078, algorithm 1"

    head_epochs: int = Field(default=5, ge=1)

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse a plan without a local head.

        Raises:
            PlanError: every tensor is federated.
        """
        _require_head(self.name, spec)

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Representation(self.head_epochs)


class FedBN(Algorithm):
    r"""Everything is federated but batch normalisation, whose statistics and scales describe a site's own data.

    Li, Jiang, Zhang, Kamp, Dou: "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
    ICLR 2021, arXiv:2102.07623, algorithm 1.

    $$x \leftarrow x + \eta_g \frac{\sum_S p_i \Delta_i}{\sum_S p_i} \text{ for all tensors but those of batch
    normalisation}$$

    ``plan.local`` must name every tensor of every batch-norm layer, statistics too; if it does not, the refusal lists
    the patterns.

    Example:
        ``Plan(algorithm="fedbn", local=("bn1.*", "bn2.*"))``
    """

    name: ClassVar[str] = "fedbn"
    title: ClassVar[str] = "FedBN"
    source: ClassVar[str] = "arXiv:2102.07623, algorithm 1"

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse a plan that federates a batch-norm layer, known by its running statistics.

        Raises:
            PlanError: lists the patterns for ``plan.local``.
        """
        layers = {row.name.rpartition(".")[0] for row in spec.tensors if row.name.endswith("running_mean")}
        federated = {row.name.rpartition(".")[0] for row in spec.tensors if row.role is not TensorRole.LOCAL}
        _require_local(layers & federated)

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _BatchNorm()


class _Representation(ClientHalf):
    def __init__(self, head_epochs: int) -> None:
        self._head_epochs = head_epochs

    def work(self, round: ClientRound) -> None:
        body = round.problem.parameters
        round.problem.run(only=lambda name: name not in body, epochs=self._head_epochs, purpose="head")
        round.problem.run(only=lambda name: name in body)
        round.send_change()


class _BatchNorm(ClientHalf):
    def work(self, round: ClientRound) -> None:
        # Layers without running statistics are known to the model only.
        federated = (name for name in round.problem.parameters if name in round.problem.batch_norm)
        _require_local({name.rpartition(".")[0] for name in federated})
        super().work(round)


def _require_head(name: str, spec: ExperimentSpec) -> None:
    if all(row.role is not TensorRole.LOCAL for row in spec.tensors):
        raise PlanError(f"algorithm {name!r} keeps a head at each site: name its tensors in local, such as ('head.*',)")


def _require_local(layers: Iterable[str]) -> None:
    patterns = [f"{layer}.*" if layer else "*" for layer in sorted(layers)]
    if patterns:
        raise PlanError(f"algorithm 'fedbn' keeps batch normalisation at each site: add {patterns} to local")
