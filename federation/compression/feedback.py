"""What a site keeps of what a codec left out, so that it is sent later: error feedback and its kin.

`send` of a client's round is: ``target = feedback.before(v, state)``; encode the target, with the state; decode to m;
``state = feedback.after(target, m, body, state)``. The state is named arrays, kept over rounds the site is not in, and
counts only once the update did.

Sources: error feedback, arXiv:1901.09847; momentum correction, arXiv:1712.01887; the warm start, arXiv:1905.13727.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from federation.compression.codec import BytesSource
from federation.compression.dgc import Dgc
from federation.compression.frame import bodies_of, segment_shapes
from federation.compression.powersgd import PowerSgd
from federation.tensors import DType, TensorSchema, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.compression.codec import Array, Buffer, Codec
    from federation.plan import Plan


class Feedback(Protocol):
    """Corrects what is sent by what was left out before. State goes in and comes out; neither argument is written."""

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return the target to encode for the vector `v` (arrays by tensor name): new arrays, float32 at least."""
        ...

    def after(
        self, target: Mapping[str, Array], sent: Mapping[str, Array], body: Buffer, state: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the state to keep once `target` went out as frame `body` and decodes to `sent`.

        Args:
            target: what `before` returned, for the same state.
            sent: what the receiver decodes.
            body: the frame.
            state: the state `before` was given.
        """
        ...


class HasOwnFeedback(Protocol):
    """What is asked of an algorithm; `federation.algorithms.Algorithm` is one."""

    @property
    def has_own_feedback(self) -> bool:
        """True if the method corrects errors itself (EF21, DIANA, MARINA)."""
        ...

    @property
    def no_feedback(self) -> frozenset[str]:
        """Payloads that correct themselves (SCAFFOLD's control) or are taken afresh each round (FedCurv's Fisher)."""
        ...


class ErrorFeedback:
    """m = C(v + e); e⁺ = v + e − m. State: ``error/<tensor>``, zeros at first; float32 for half precision."""

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return v + e."""
        return {
            name: np.asarray(array + state[f"error/{name}"]) if f"error/{name}" in state else array.copy()
            for name, array in _widened(v).items()
        }

    def after(
        self, target: Mapping[str, Array], sent: Mapping[str, Array], body: Buffer, state: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return e⁺ = target − m."""
        return {f"error/{name}": np.asarray(array - sent[name]) for name, array in target.items()}


class MomentumCorrection:
    """What DGC accumulates: u = m·u + g; v = v + u; v is sent where it is large; there u and v are set to 0.

    g is the vector to send, first clipped to the norm ``clip``/√N. State: ``momentum/<tensor>`` (u),
    ``velocity/<tensor>`` (v, after the sending), ``round`` (how many were sent, for the warm-up).

    Args:
        momentum: m, 0 to 1.
        clip: threshold of ‖g‖ before the division by √N; 0: none.
        sites: N, the sites whose updates are averaged.
    """

    def __init__(self, *, momentum: float, clip: float, sites: int) -> None:
        self._momentum, self._clip, self._sites = momentum, clip, sites

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return the accumulated v."""
        u = self._momenta(v, state)
        return {
            name: np.asarray(state[f"velocity/{name}"] + u[name]) if f"velocity/{name}" in state else u[name]
            for name in u
        }

    def after(
        self, target: Mapping[str, Array], sent: Mapping[str, Array], body: Buffer, state: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return u and v with 0 where something was sent. u is target − the old v: it need not be kept in between."""
        kept: dict[str, Array] = {}
        for name, array in target.items():
            old = state.get(f"velocity/{name}")
            waiting = sent[name] == 0
            kept[f"momentum/{name}"] = np.asarray((array if old is None else array - old) * waiting)
            kept[f"velocity/{name}"] = np.asarray(array * waiting)
        return {**kept, "round": state.get("round", np.zeros(1)) + 1}

    def _momenta(self, g: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return m·u + g, with g clipped."""
        factor = 1.0
        if self._clip:
            norm = math.sqrt(math.fsum(float(np.sum(np.square(array, dtype=np.float64))) for array in g.values()))
            factor = min(1.0, self._clip / math.sqrt(self._sites) / norm) if norm else 1.0
        u: dict[str, Array] = {}
        for name, array in _widened(g).items():
            clipped = array * factor
            old = state.get(f"momentum/{name}")
            u[name] = np.asarray(clipped if old is None else clipped + old * self._momentum)
        return u


class RoundsSent:
    """DGC without momentum correction: nothing is kept but ``round``, how many were sent, for its warm-up."""

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return v."""
        return {name: array.copy() for name, array in _widened(v).items()}

    def after(
        self, target: Mapping[str, Array], sent: Mapping[str, Array], body: Buffer, state: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the count."""
        return {"round": state.get("round", np.zeros(1)) + 1}


class WarmQ:
    """What PowerSGD keeps: the Q of each matrix, to start from, and what an `inner` feedback keeps beside it.

    State: ``q/<segment>``, all Qs of a segment one after another; and that of `inner`.

    Args:
        codec: the codec whose frames are read.
        inner: error feedback, or None for the Qs alone.
    """

    def __init__(self, codec: PowerSgd, inner: Feedback | None) -> None:
        self._codec, self._inner = codec, inner

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return what `inner` makes of v."""
        if self._inner:
            return self._inner.before(v, state)
        return {name: array.copy() for name, array in _widened(v).items()}

    def after(
        self, target: Mapping[str, Array], sent: Mapping[str, Array], body: Buffer, state: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return what `inner` keeps, and the Qs in `body`."""
        kept = self._inner.after(target, sent, body, state) if self._inner else {}
        schema = TensorSchema.of(
            TensorSpec(name=name, dtype=DType.of(array.dtype), shape=array.shape) for name, array in sent.items()
        )
        for index, (segment, part, dtype) in enumerate(bodies_of(BytesSource(body), schema, self._codec)):
            if segment.dtype.is_float:
                kept[f"q/{index}"] = self._codec.last_q(part, dtype, segment_shapes(schema, segment))
        return kept


def _widened(v: Mapping[str, Array]) -> dict[str, Array]:
    """Return float32 for half precision: added up in that, what is small is lost for ever."""
    return {name: array.astype(DType.of(array.dtype).widened.numpy, copy=False) for name, array in v.items()}


def feedback_for(codec: Codec, plan: Plan, algorithm: HasOwnFeedback, payload: str = "delta") -> Feedback | None:
    """Return the feedback a site uses for a payload sent by `codec`, or None.

    Off for unbiased codecs, if ``plan.error_feedback`` is False, for algorithms with a correction of their own, and for
    payloads in `no_feedback`; ``powersgd`` keeps its Q and ``dgc`` its count all the same.
    """
    if codec.is_unbiased:
        return None
    corrects_itself = algorithm.has_own_feedback or payload in algorithm.no_feedback
    is_on = not corrects_itself and plan.error_feedback is not False
    if isinstance(codec, PowerSgd):
        return WarmQ(codec, ErrorFeedback() if is_on else None)
    if not is_on:
        return RoundsSent() if isinstance(codec, Dgc) and codec.warm_up else None
    if isinstance(codec, Dgc):
        sites = plan.sample or plan.sites or plan.minimum_sites
        return MomentumCorrection(momentum=codec.momentum, clip=codec.clip, sites=sites)
    return ErrorFeedback()
