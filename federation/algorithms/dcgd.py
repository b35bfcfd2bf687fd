"""DCGD: compress the update itself, the baseline of compressed methods."""

from __future__ import annotations

from typing import ClassVar

from federation.algorithms.algorithm import Algorithm
from federation.algorithms.server import ServerHalf, ServerRound, uniform


class Dcgd(Algorithm):
    r"""Distributed compressed gradient descent: every site sends C of its update, the server takes the plain mean.

    Khirirat, Feyzmahdavian, Johansson: "Distributed Learning with Compressed Gradients", arXiv:1806.06573,
    algorithm 1 with a compressor C; as in arXiv:1901.09269, section 2.

    $$x \leftarrow x + \eta_g \frac{1}{|S|} \sum_S C_i(\Delta_i), \qquad \Delta_i = -\eta_l \nabla f_i(x)
    \text{ for one local step}$$

    It stalls at a noise floor unless every ∇f_i vanishes at the optimum; DIANA and MARINA do not. Biased codecs come
    with error feedback unless the plan turns it off.

    Example:
        ``Plan(algorithm="dcgd", compression="bernoulli:0.8", local_steps=1)``
    """

    name: ClassVar[str] = "dcgd"
    title: ClassVar[str] = "DCGD"
    source: ClassVar[str] = "arXiv:1806.06573, algorithm 1"

    def server(self) -> ServerHalf:
        """Return the server half."""
        return _Server()


class _Server(ServerHalf):
    def weights(self, round: ServerRound) -> dict[str, list[float]]:
        return uniform(round, "delta")
