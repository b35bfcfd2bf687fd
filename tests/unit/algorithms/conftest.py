"""A whole federation of least-squares problems in memory, to try methods on: `Federation`.

Site i has f_i(x) = mean((A_i x − b_i)²), x of d float64 elements in two tensors, in memory order ``bias`` (1) and
``weight`` (d − 1, or a matrix where a codec wants one). A pass is one full-batch step. The server half sees tiles of a
size the test chooses; payloads go through the real codecs and their real feedback, the model through the real downlink
codec. What methods compute is compared with brute force over whole vectors in the tests themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from federation.algorithms import (
    Algorithm,
    Run,
    ServerRound,
    ServerTile,
    SiteFacts,
    Step,
    Vector,
    count_sites,
)
from federation.algorithms.client import OptimizerChoice, shared_stream
from federation.compression import decode_payload, encode_payload, feedback_for, load_codec, payload_damping
from federation.plan import Plan
from federation.rounds.randomness import derive_seed
from federation.rounds.schedules import local_rate, server_rate
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


def schema_of(d: int, shape: tuple[int, ...] | None = None) -> TensorSchema:
    return TensorSchema.of(
        [
            TensorSpec(name="bias", dtype=DType.FLOAT64, shape=(1,)),
            TensorSpec(name="weight", dtype=DType.FLOAT64, shape=shape or (d - 1,)),
        ]
    )


def as_vector(flat: np.ndarray, shape: tuple[int, ...] = (-1,)) -> Vector:
    return Vector({"bias": flat[:1].copy(), "weight": flat[1:].copy().reshape(shape)})


def as_flat(vector: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([vector["bias"], vector["weight"].reshape(-1)])


@dataclass
class LeastSquares:
    """`LocalProblem` of one site; with `head`, an offset of the site's own that is trained and never federated."""

    a: np.ndarray
    b: np.ndarray
    parameters: Vector
    eta: float
    tau: int
    head: np.ndarray | None = None
    batch_norm: frozenset[str] = frozenset()
    optimizer: OptimizerChoice = field(default_factory=lambda: OptimizerChoice(name="sgd"))
    runs: int = 0

    @property
    def trained(self) -> Vector:
        return self.parameters if self.head is None else Vector({**self.parameters, "head": self.head})

    def _residual(self) -> np.ndarray:
        return self.a @ as_flat(self.parameters) + (0.0 if self.head is None else self.head) - self.b

    def _gradient(self) -> Vector:
        residual = self._residual()
        gradient = dict(as_vector(2 / len(self.b) * self.a.T @ residual, self.parameters["weight"].shape))
        return Vector(gradient if self.head is None else {**gradient, "head": np.array([2 * residual.mean()])})

    def run(
        self, *, gradient=None, only=None, optimizer=None, learning_rate=None, epochs=None, steps=None, stop=None,
        purpose="shuffle",
    ) -> Run:  # fmt: skip
        self.runs += 1
        eta = self.eta if learning_rate is None else learning_rate
        rho = optimizer.options["momentum"] if optimizer else 0.0
        velocity, k = self.trained.zeros_like(), 0
        for k in range(1, (steps or epochs or self.tau) + 1):
            g = self._gradient()
            federated = g.select(lambda name: name != "head")
            if gradient is not None:
                gradient(Step(k=k - 1, parameters=self.parameters, gradients=federated, learning_rate=eta))
            velocity = rho * velocity + g
            self.trained.__isub__(Vector({n: eta * v * (only is None or only(n)) for n, v in velocity.items()}))
            if stop is not None and stop(federated):
                break
        return Run(steps=k, learning_rate_sum=k * eta, passes=k, oracle_calls=k * len(self.b), metrics=self.evaluate())

    def gradient(self, *, estimator=None, purpose="gradient") -> tuple[Vector, float]:
        return self._gradient().select(lambda name: name != "head"), self.loss()

    def next_gradient(self) -> tuple[Vector, float]:
        return self.gradient()

    def fisher(self) -> Vector:
        each = 2 * self._residual()[:, None] * self.a
        return as_vector((each**2).mean(axis=0), self.parameters["weight"].shape)

    def evaluate(self) -> dict[str, float]:
        return {"loss": self.loss()}

    def loss(self) -> float:
        return float((self._residual() ** 2).mean())


@dataclass
class SiteRound:
    """`ClientRound` of one site."""

    number: int
    site: str
    seed: int
    learning_rate: float
    problem: LeastSquares
    start: Vector
    received: dict[str, Vector]
    state: dict[str, Vector]
    schema: TensorSchema
    plan: Plan
    method: Algorithm
    feedback: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    sent: dict[str, Vector] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)

    def send(self, name: str, vector: Vector, *, whole: bool = False) -> Vector:
        assert name not in self.sent, f"{name} was sent twice"
        codec = load_codec("identity" if whole else self.codecs[name])
        seed = derive_seed(self.seed, self.number, self.site, f"compression/{name}")
        feedback = None if whole else feedback_for(codec, self.plan, self.method, name)
        state = self.feedback.get(name, {})
        target = dict(vector) if feedback is None else feedback.before(vector, state)
        data = encode_payload(self.schema, target, codec, seed=seed, state=state)
        sent = decode_payload(data, self.schema)
        if feedback is not None:
            self.feedback[name] = feedback.after(target, sent, data, state)
        self.sent[name] = Vector(sent)
        return self.sent[name].copy()

    @property
    def codecs(self) -> dict[str, str]:
        uplink, _ = self.method.payload_rows(self.plan)
        return {"delta": self.plan.compression} | {str(row.name): row.codec for row in uplink}

    def send_change(self) -> Vector:
        return self.send("delta", self.problem.parameters - self.start)

    def send_scalar(self, name: str, value: float) -> None:
        self.scalars[name] = value

    def damping(self, name: str) -> float:
        return payload_damping(self.schema, load_codec(self.codecs[name]))

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, self.number, self.site, f"algorithm/{purpose}"))

    def shared_rng(self, purpose: str) -> Any:
        return shared_stream(self.seed, self.number, purpose)


class Federation:
    """Server and sites of one method. `x` is the model and `slots` the server's state, flat float64."""

    def __init__(
        self, method: Algorithm, problems: list[tuple[np.ndarray, np.ndarray]], *, tile: int = 3, tau: int = 1,
        has_head: bool = False, start: np.ndarray | None = None, shape: tuple[int, ...] | None = None, **plan: Any,
    ) -> None:  # fmt: skip
        self.method, self.problems, self.tile, self.tau = method, problems, tile, tau
        self.plan = Plan(algorithm=method.name, options=method.options(), evaluate_every=0, **plan)
        d = problems[0][0].shape[1]
        self.schema = schema_of(d, shape)
        self.x = np.ones(d) if start is None else start.copy()
        self.slots = {slot: np.full(d, method.server().initial(slot)) for slot in method.slots}
        self.at_sites = self.x.copy()
        """x̂: what sites hold where a downlink codec brings it to them."""
        self.states: list[dict[str, Vector]] = [{} for _ in problems]
        self.feedback: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        self.heads = [np.zeros(1) if has_head else None for _ in problems]
        self.number = self.total = 0
        self.facts: tuple[SiteFacts, ...] = ()

    def site_round(self, site: int, x: np.ndarray | None = None) -> SiteRound:
        a, b = self.problems[site]
        if x is None:
            x = self.x if self.plan.downlink == "identity" else self.at_sites
        shape = self.schema["weight"].shape
        eta = local_rate(self.plan, self.number)
        problem = LeastSquares(a, b, as_vector(x, shape), eta, self.tau, self.heads[site])
        return SiteRound(
            number=self.number, site=f"site-{site}", seed=self.plan.seed, learning_rate=eta, problem=problem,
            start=as_vector(x, shape), received={s: as_vector(self.slots[s], shape) for s in self.method.broadcast},
            state={name: vector.copy() for name, vector in self.states[site].items()}, schema=self.schema,
            plan=self.plan, method=self.method, feedback=dict(self.feedback.get(site, {})),
        )  # fmt: skip

    def round(self, asked: list[int] | None = None, *, lost: tuple[int, ...] = ()) -> np.ndarray:
        """Run one round; sites in `lost` train, but their update does not count. Returns the new model."""
        self.number += 1
        asked = list(range(len(self.problems))) if asked is None else asked
        rounds = {site: self.site_round(site) for site in asked}
        for each in rounds.values():
            self.method.client().work(each)
        counted = {site: each for site, each in rounds.items() if site not in lost}
        for site, each in counted.items():
            self.states[site] = {name: vector.copy() for name, vector in each.state.items()}
            self.feedback[site] = each.feedback
        self.combine(counted, connected=len(self.problems))
        return self.x

    def _send_model(self) -> None:
        """x̂ += C(x − x̂)/(1 + ω), as `federation.storage.steps` has it of a model that is one part."""
        codec, step = load_codec(self.plan.downlink), as_vector(self.x - self.at_sites, self.schema["weight"].shape)
        seed = derive_seed(self.plan.seed, self.number, "", "compression/step/0")
        data = encode_payload(self.schema, dict(step), codec, seed=seed)
        self.at_sites += payload_damping(self.schema, codec) * as_flat(decode_payload(data, self.schema))

    def combine(self, counted: dict[int, SiteRound], *, connected: int, staleness: tuple[int, ...] = ()) -> None:
        before, self.total = self.total, count_sites(self.total, connected, self.plan)
        self.facts = tuple(
            SiteFacts(
                site=each.site, examples=len(self.problems[site][1]), steps=self.tau, scalars=each.scalars,
                norm=math.sqrt(each.sent["delta"].squared_norm()), staleness=staleness[place] if staleness else 0,
            )
            for place, (site, each) in enumerate(sorted(counted.items()))
        )  # fmt: skip
        damping = payload_damping(self.schema, load_codec(self.plan.compression))
        round = ServerRound(
            number=self.number, plan=self.plan, sites=self.facts, total=self.total,
            learning_rate=server_rate(self.plan, self.number), damping=damping,
        )  # fmt: skip
        server = self.method.server()
        weights, scalars = server.weights(round), server.begin(round)
        means = {
            name: np.average([as_flat(each.sent[name]) for each in counted.values()], axis=0, weights=weights[name])
            for name in ("delta", *self.method.vectors)
        }
        for slot in self.method.rescaled:
            self.slots[slot] *= before / self.total if before else 1.0
        for start in range(0, len(self.x), self.tile):
            part = slice(start, start + self.tile)
            server.step(
                ServerTile(
                    x=self.x[part], mean={n: v[part] for n, v in means.items()},
                    state={n: v[part] for n, v in self.slots.items()}, start=start,
                ),
                scalars,
            )  # fmt: skip
        if self.plan.downlink != "identity":
            self._send_model()


def draw_problems(sites: int = 3, d: int = 5, samples: int = 8, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (A_i, b_i) of unlike sites with unequal amounts of data, well conditioned."""
    rng = np.random.default_rng(seed)
    return [
        (np.linalg.qr(rng.normal(size=(samples + 2 * site, d)))[0] * math.sqrt(samples) * (1 + 0.2 * site),
         rng.normal(size=samples + 2 * site))
        for site in range(sites)
    ]  # fmt: skip


def gradient_of(problem: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    a, b = problem
    return 2 / len(b) * a.T @ (a @ x - b)


def minimiser(problems: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the x at which the unweighted mean of all gradients vanishes."""
    hessian = sum(2 / len(b) * a.T @ a for a, b in problems)
    return np.linalg.solve(hessian, sum(2 / len(b) * a.T @ b for a, b in problems))


@pytest.fixture
def problems() -> list[tuple[np.ndarray, np.ndarray]]:
    return draw_problems()


@pytest.fixture
def federate() -> type[Federation]:
    return Federation


@pytest.fixture
def grad() -> Any:
    return gradient_of


@pytest.fixture
def solve() -> Any:
    return minimiser
