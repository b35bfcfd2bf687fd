"""FedOpt: the mean change as a gradient for an optimizer at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.server import ServerHalf, ServerTile, advance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.tensors.buffers import Array


class FedAvgM(Algorithm):
    r"""The server keeps the direction of earlier rounds: momentum against the zigzag of unlike sites.

    Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    arXiv:1909.06335, section 4.2.

    $$v \leftarrow \beta v + \Delta, \qquad x \leftarrow x + \eta_g v, \qquad
    \Delta = \frac{\sum_S p_i \Delta_i}{\sum_S p_i}$$

    Example:
        ``Plan(algorithm="fedavgm", options={"beta": 0.9}, server_learning_rate=1.0)``

    Attributes:
        beta: β in [0, 1); with 0 it is FedAvg.
    """

    name: ClassVar[str] = "fedavgm"
    title: ClassVar[str] = "FedAvgM"
    source: ClassVar[str] = "arXiv:1909.06335, section 4.2"
    slots: ClassVar[tuple[str, ...]] = ("momentum",)
    has_momentum: ClassVar[bool] = True

    beta: float = Field(default=0.9, ge=0, lt=1)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Momentum(self.beta)


class FedAdagrad(Algorithm):
    r"""Adagrad at the server: coordinates that have moved much move less.

    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021,
    arXiv:2003.00295, algorithm 2.

    $$m \leftarrow \beta_1 m + (1 - \beta_1)\Delta, \qquad v \leftarrow v + \Delta^2, \qquad
    x \leftarrow x + \eta_g \frac{m}{\sqrt v + \tau}$$

    m⁰ = 0, v⁰ = τ²; τ stands outside the root; there is no bias correction.

    Example:
        ``Plan(algorithm="fedadagrad", server_learning_rate=0.1)``

    Attributes:
        beta1: β₁ in [0, 1).
        tau: τ > 0, how adaptive: smaller is more.
    """

    name: ClassVar[str] = "fedadagrad"
    title: ClassVar[str] = "FedAdagrad"
    source: ClassVar[str] = "arXiv:2003.00295, algorithm 2"
    slots: ClassVar[tuple[str, ...]] = ("momentum", "variance")

    beta1: float = Field(default=0.0, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Adagrad(self.beta1, self.tau)


class FedAdam(Algorithm):
    r"""Adam at the server: a step of about η_g in each coordinate, whatever the scale of the changes.

    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021,
    arXiv:2003.00295, algorithm 2.

    $$m \leftarrow \beta_1 m + (1 - \beta_1)\Delta, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\Delta^2, \qquad
    x \leftarrow x + \eta_g \frac{m}{\sqrt v + \tau}$$

    m⁰ = 0, v⁰ = τ²; τ stands outside the root; there is no bias correction.

    Example:
        ``Plan(algorithm="fedadam", server_learning_rate=0.01)``

    Attributes:
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        tau: τ > 0, how adaptive: smaller is more.
    """

    name: ClassVar[str] = "fedadam"
    title: ClassVar[str] = "FedAdam"
    source: ClassVar[str] = "arXiv:2003.00295, algorithm 2"
    slots: ClassVar[tuple[str, ...]] = ("momentum", "variance")

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return AdamServer(self.beta1, self.beta2, self.tau)


class FedYogi(Algorithm):
    r"""Yogi at the server: Adam whose variance grows fast and shrinks only slowly, for sparse and noisy changes.

    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021,
    arXiv:2003.00295, algorithm 2.

    $$m \leftarrow \beta_1 m + (1 - \beta_1)\Delta, \qquad
    v \leftarrow v - (1 - \beta_2)\Delta^2 \operatorname{sign}(v - \Delta^2), \qquad
    x \leftarrow x + \eta_g \frac{m}{\sqrt v + \tau}$$

    m⁰ = 0, v⁰ = τ²; τ stands outside the root; there is no bias correction.

    Example:
        ``Plan(algorithm="fedyogi", server_learning_rate=0.01)``

    Attributes:
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        tau: τ > 0, how adaptive: smaller is more.
    """

    name: ClassVar[str] = "fedyogi"
    title: ClassVar[str] = "FedYogi"
    source: ClassVar[str] = "arXiv:2003.00295, algorithm 2"
    slots: ClassVar[tuple[str, ...]] = ("momentum", "variance")

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Yogi(self.beta1, self.beta2, self.tau)


class _Momentum(ServerHalf):
    def __init__(self, beta: float) -> None:
        self._beta = beta

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        v = tile.state["momentum"]
        v *= self._beta
        v += tile.mean["delta"]
        advance(tile.x, scalars["eta"], v)


class _Adaptive(ServerHalf):
    """Algorithm 2 of the paper; subclasses differ in what becomes of v."""

    def __init__(self, beta1: float, tau: float) -> None:
        self._beta1 = beta1
        self._tau = tau

    def initial(self, slot: str) -> float:
        return self._tau**2 if slot == "variance" else 0.0

    def step(self, tile: ServerTile, scalars: Mapping[str, float]) -> None:
        m, v, delta = tile.state["momentum"], tile.state["variance"], tile.mean["delta"]
        m *= self._beta1
        m += (1 - self._beta1) * delta
        self._accumulate(v, delta * delta)
        tile.x += scalars["eta"] * m / (np.sqrt(v) + self._tau)

    def _accumulate(self, v: Array, squared: Array) -> None:
        raise NotImplementedError


class _Adagrad(_Adaptive):
    def _accumulate(self, v: Array, squared: Array) -> None:
        v += squared


class AdamServer(_Adaptive):
    """FedAdam's server half, which personalised FedAvg uses too."""

    def __init__(self, beta1: float, beta2: float, tau: float) -> None:
        """Keep β₁, β₂ and τ."""
        super().__init__(beta1, tau)
        self._beta2 = beta2

    def _accumulate(self, v: Array, squared: Array) -> None:
        v *= self._beta2
        v += (1 - self._beta2) * squared


class _Yogi(_Adaptive):
    def __init__(self, beta1: float, beta2: float, tau: float) -> None:
        super().__init__(beta1, tau)
        self._beta2 = beta2

    def _accumulate(self, v: Array, squared: Array) -> None:
        v -= (1 - self._beta2) * squared * np.sign(v - squared)
