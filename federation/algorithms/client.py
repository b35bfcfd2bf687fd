"""The client half of a method: local gradient, local optimizer and local state (hooks 3, 4 and 5), and their loop.

1. A half is stateless: what a site keeps lies in `ClientRound.state`, what it received in `start` and `received`, what
   it sends goes through `send`. So a half may be shared by any number of sites and processes.
2. Whatever `state` holds when `work` returns is pending: it takes effect when the update counted, and is dropped when
   it did not (`federation.training.state`).
3. Whoever updates state from what the server will see uses what `send` returns: the vector as the server decodes it,
   after compression. So the two ends never drift apart.
4. Names, shapes and dtypes of `start`, `received` and of every vector sent are those of the model's federated, trained
   parameters, with float32 for half precision: so are gradients that were asked for, and what is made of all these.
   Live tensors are of the model's own dtypes; what is written into them, or sent as ``delta``, is rounded to those.
   Site state may have any tensors: a personal head has names the server never sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from federation.rounds import randomness

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    import numpy as np

    from federation.algorithms.vector import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerChoice:
    """A local optimizer by name, with its options beside the learning rate: ``sgd``, ``{"momentum": 0.9}``."""

    name: str
    options: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return it as a text names it: ``sgd, momentum=0.9``; options that are 0 are left out."""
        return ", ".join([self.name, *(f"{name}={value}" for name, value in self.options.items() if value)])


@dataclass(slots=True, kw_only=True)
class Step:
    """One local step, after the backward pass and before the optimizer.

    Attributes:
        k: step of this run, from 0.
        parameters: the model's federated trained tensors, live: read them, and put them back if you move them.
        gradients: gradients of the batch at `parameters`, live: what they hold afterwards is what the optimizer gets.
        learning_rate: η_l of this step.
    """

    k: int
    parameters: Vector
    gradients: Vector
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a local run did.

    Attributes:
        steps: τ, optimizer steps.
        learning_rate_sum: Σ_k η_k.
        passes: whole passes over the local data.
        oracle_calls: gradients of single examples computed.
        metrics: the run's training metrics.
    """

    steps: int
    learning_rate_sum: float
    passes: int
    oracle_calls: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class LocalProblem(Protocol):
    """The site's objective F_i and its data, as the task defines them. `federation.training` implements it.

    Attributes:
        parameters: federated and trained tensors, live.
        trained: every trained tensor, local heads too, live.
        batch_norm: names of the trained tensors that belong to batch normalisation.
        optimizer: the task's own choice.
    """

    @property
    def parameters(self) -> Vector: ...  # noqa: D102 - documented above

    @property
    def trained(self) -> Vector: ...  # noqa: D102 - documented above

    @property
    def batch_norm(self) -> frozenset[str]: ...  # noqa: D102 - documented above

    @property
    def optimizer(self) -> OptimizerChoice: ...  # noqa: D102 - documented above

    def run(
        self,
        *,
        gradient: Callable[[Step], None] | None = None,
        only: Callable[[str], bool] | None = None,
        optimizer: OptimizerChoice | None = None,
        learning_rate: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        stop: Callable[[Vector], bool] | None = None,
        purpose: str = "shuffle",
    ) -> Run:
        """Train from `parameters` as they are, in place.

        The optimizer is fresh, but for a run with the task's own optimizer and the default purpose where the plan keeps
        or aggregates its state.

        Args:
            gradient: called before each optimizer step; may change ``step.gradients``.
            only: the trained tensors that move; all others stay frozen. None: all trained tensors.
            optimizer: None: the task's own.
            learning_rate: None: that of the round.
            epochs: passes over the data. Without epochs and steps the plan's amount of work.
            steps: optimizer steps.
            stop: called after each whole pass with the mean over its batches of the gradients the optimizer got (after
                `gradient`); True ends the run.
            purpose: name of the random stream of the batches; equal names draw equal batches within a round.
        """
        ...

    def gradient(self, *, estimator: str | None = None, purpose: str = "gradient") -> tuple[Vector, float]:
        """Return (∇F_i, F_i) at `parameters`, in arrays of their own (rule 4); buffers and random streams stay.

        May be called inside the `gradient` hook of a run, whose gradients and batches it leaves alone.

        Args:
            estimator: ``full``, ``subset:SIZE`` or ``minibatch``; None: the plan's.
            purpose: name of the random stream the sample is drawn from; equal names draw equal samples within a round.
        """
        ...

    def next_gradient(self) -> tuple[Vector, float]:
        """Return (∇, loss) at `parameters` on the next minibatch of a stream of its own; arrays as of `gradient`.

        May be called inside the `gradient` hook of a run, whose gradients and batches it leaves alone.
        """
        ...

    def fisher(self) -> Vector:
        """Return the mean over local examples of the squared gradient of each, at `parameters`; by rule 4."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return the validation metrics at `parameters`, or the training metrics where a site has no such split."""
        ...

    def loss(self) -> float:
        """Return F_i at `parameters`: the mean training loss."""
        ...


class ClientRound(Protocol):
    """One site's view of one round. `federation.training.client_round` implements it.

    Attributes:
        number: t, from 1.
        site: the site's name.
        seed: root seed of the plan.
        learning_rate: η_l(t).
        problem: the site's objective, with `start` loaded.
        start: x as received; never written.
        received: broadcast server state by slot name.
        state: what the site keeps; see rule 2 of the module.
    """

    @property
    def number(self) -> int: ...  # noqa: D102 - documented above

    @property
    def site(self) -> str: ...  # noqa: D102 - documented above

    @property
    def seed(self) -> int: ...  # noqa: D102 - documented above

    @property
    def learning_rate(self) -> float: ...  # noqa: D102 - documented above

    @property
    def problem(self) -> LocalProblem: ...  # noqa: D102 - documented above

    @property
    def start(self) -> Vector: ...  # noqa: D102 - documented above

    @property
    def received(self) -> Mapping[str, Vector]: ...  # noqa: D102 - documented above

    @property
    def state(self) -> dict[str, Vector]: ...  # noqa: D102 - documented above

    def send(self, name: str, vector: Vector, *, whole: bool = False) -> Vector:
        """Encode `vector` as payload `name` and return what the server will decode.

        Sending ``delta`` fixes what else the site reports: buffers, steps and training metrics of the latest run.

        Args:
            name: ``delta`` or one of `Algorithm.vectors`; each once a round.
            vector: with the schema of the federated parameters.
            whole: uncompressed, whatever the plan says.
        """
        ...

    def send_change(self) -> Vector:
        """Send ``problem.parameters - start`` as ``delta``."""
        ...

    def send_scalar(self, name: str, value: float) -> None:
        """Send one of `Algorithm.scalars`."""
        ...

    def damping(self, name: str) -> float:
        """Return 1/(1 + ω) of the payload's codec where it is unbiased, 1 for identity and biased ones."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the site's stream (seed, round, site, "algorithm/" + purpose)."""
        ...

    def shared_rng(self, purpose: str) -> random.Random:
        """Return `shared_stream` of this round: the same at every site and at the server."""
        ...


def shared_stream(seed: int, round_number: int, purpose: str) -> random.Random:
    """Return the stream (seed, round, "", "algorithm/" + purpose) that all sites and the server share."""
    return randomness.stream(seed, round_number, "", f"algorithm/{purpose}")


class ClientHalf:
    """FedAvg's client half, hook by hook: methods override those they change."""

    def local_gradient(self, round: ClientRound, step: Step) -> None:
        """LocalGradient: change ``step.gradients`` in place. By default they stay as they are."""

    def client_opt(self, round: ClientRound) -> OptimizerChoice | None:
        """ClientOpt: the local optimizer; None, the default: the task's own."""
        return None

    def local_state(self, round: ClientRound, run: Run) -> None:
        """LocalState: after the run and after the change was sent, update ``round.state`` and send the rest."""

    def work(self, round: ClientRound) -> None:
        """Train and send: the loop around the hooks. Methods with another order override it whole."""
        has_hook = type(self).local_gradient is not ClientHalf.local_gradient
        run = round.problem.run(
            gradient=partial(self.local_gradient, round) if has_hook else None, optimizer=self.client_opt(round)
        )
        round.send_change()
        self.local_state(round, run)

    def evaluate(self, round: ClientRound) -> dict[str, float]:
        """Return the site's metrics of the model received; personal methods add ``personal_*``."""
        return round.problem.evaluate()
