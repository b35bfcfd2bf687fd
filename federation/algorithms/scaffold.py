"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.client import ClientHalf
from federation.algorithms.server import ServerHalf, ServerRound, ServerTile, advance, uniform
from federation.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.algorithms.client import ClientRound, OptimizerChoice, Step


class Scaffold(Algorithm):
    r"""Each site knows how its own gradient differs from everyone's, and corrects every local step by it.

    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
    ICML 2020, arXiv:1910.06378, algorithm 1.

    $$y \leftarrow y - \eta_l (g_i(y) - c_i + c), \qquad c_i^+ = g_i(x) \text{ (I) or }
    c_i - c + \frac{x - y}{\sum_k \eta_k} \text{ (II)}$$

    $$x \leftarrow x + \frac{\eta_g}{|S|} \sum_S \Delta_i, \qquad c \leftarrow c + \frac{1}{N} \sum_S (c_i^+ - c_i)$$

    c = mean of all c_i, always: unsampled sites keep theirs, and a late joiner starts with c_i = 0 while c is rescaled
    by N_old/N. Local steps use the *previous* c_i; a refreshed one oscillates. Under an unbiased compressor both ends
    damp the change of c_i by 1/(1+ω), without which the method diverges. Under a biased one Δ has error feedback, but
    not the change of c_i, whose next value holds what this one lost.

    Example:
        ``Plan(algorithm="scaffold", options={"option": 2}, local_steps=10, server_learning_rate=1.0)``

    Attributes:
        option: 1: c_i from a full local gradient at x, one more pass; 2: from the steps taken, free, for plain SGD.
    """

    name: ClassVar[str] = "scaffold"
    title: ClassVar[str] = "SCAFFOLD"
    source: ClassVar[str] = "arXiv:1910.06378, algorithm 1"
    slots: ClassVar[tuple[str, ...]] = ("control",)
    broadcast: ClassVar[tuple[str, ...]] = ("control",)
    vectors: ClassVar[tuple[str, ...]] = ("control",)
    site_state: ClassVar[tuple[str, ...]] = ("control",)
    rescaled: ClassVar[frozenset[str]] = frozenset({"control"})
    no_feedback: ClassVar[frozenset[str]] = frozenset({"control"})

    option: Literal[1, 2] = 1

    def check_optimizer(self, choice: OptimizerChoice) -> None:
        """Refuse option 2 with anything but plain SGD.

        Raises:
            PlanError: the steps would not tell the gradients.
        """
        if self.option == 2 and (choice.name != "sgd" or any(choice.options.values())):
            raise PlanError(f"algorithm 'scaffold' option 2 needs plain SGD; the task uses {choice}: set option = 1")

    def client(self) -> ClientHalf:
        """Return the client half."""
        return _Client(self)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server()


class _Client(ClientHalf):
    def __init__(self, method: Scaffold) -> None:
        self._method = method

    def work(self, round: ClientRound) -> None:
        """Descend along g_i(y) − c_i + c; then make c_i⁺ as the option says and send Δ and c_i⁺ − c_i."""
        self._method.check_optimizer(round.problem.optimizer)
        x, c = round.start, round.received["control"]
        c_i = round.state.setdefault("control", x.zeros_like())
        # Before y moves; option II needs no gradient at x.
        g_x = round.problem.gradient(estimator="full")[0] if self._method.option == 1 else None
        # The previous c_i, throughout: refreshed first, τ = 1 would step along an old gradient, and oscillate.
        correction = c - c_i

        def local_gradient(step: Step) -> None:
            step.gradients += correction

        run = round.problem.run(gradient=local_gradient)
        if g_x is not None:
            change = g_x - c_i
        elif run.learning_rate_sum:
            change = (x - round.problem.parameters) / run.learning_rate_sum - c
        else:  # A schedule may end at η_l = 0, where the steps say nothing of the gradient.
            change = x.zeros_like()
        round.send_change()
        u = round.send("control", change)
        round.state["control"] = c_i + round.damping("control") * u


class _Server(ServerHalf):
    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta", "control")

    def begin(self, round: ServerRound) -> Mapping[str, float]:
        return {"eta": round.learning_rate, "share": len(round.sites) / round.total * round.damping}

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        advance(tile.x, scalars["eta"], tile.mean["delta"])
        c = tile.state["control"]
        c += scalars["share"] * tile.mean["control"]
