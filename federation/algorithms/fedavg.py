"""FedAvg: the mean of what sites learnt."""

from __future__ import annotations

from typing import ClassVar

from federation.algorithms.algorithm import Algorithm


class FedAvg(Algorithm):
    r"""Sites train for a while on their own data; the model moves by the weighted mean of their changes.

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas: "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, arXiv:1602.05629, algorithm 1.

    $$x^{t+1} = x^t + \eta_g \frac{\sum_{i \in S} p_i \Delta_i}{\sum_{i \in S} p_i}, \qquad p_i = n_i$$

    Example:
        ``Plan(algorithm="fedavg", local_epochs=5)``

    It has no options of its own: ``plan.weighting`` makes p_i = 1, ``plan.server_learning_rate`` is η_g.
    """

    name: ClassVar[str] = "fedavg"
    title: ClassVar[str] = "FedAvg"
    source: ClassVar[str] = "arXiv:1602.05629, algorithm 1"
