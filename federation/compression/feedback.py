"""What a site keeps of what a codec left out, so that it is sent later: error feedback and its kin.

`send` of a client's round is: ``target = feedback.before(v, state)``; encode the target, with the state; decode to m;
``state = feedback.after(target, m, body, state)``. The state is named arrays, kept over rounds the site is not in, and
counts only once the update did.

Sources: error feedback as in arXiv:1901.09847.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.compression.codec import Array, Buffer, Codec
    from federation.plan import Plan


class Feedback(Protocol):
    """Corrects what is sent by what was left out before. State goes in and comes out; neither argument is written."""

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return the target to encode for the vector `v` (arrays by tensor name), new arrays of equal dtypes."""
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
    """The one thing asked of an algorithm; `federation.algorithms.Algorithm` is one."""

    @property
    def has_own_feedback(self) -> bool:
        """True if the method corrects errors itself (EF21, DIANA, MARINA)."""
        ...


class ErrorFeedback:
    """m = C(v + e); e⁺ = v + e − m. State: ``error/<tensor>``, zeros at first."""

    def before(self, v: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, Array]:
        """Return v + e."""
        return {
            name: array + state[f"error/{name}"] if f"error/{name}" in state else array.copy()
            for name, array in v.items()
        }

    def after(
        self, target: Mapping[str, Array], sent: Mapping[str, Array], body: Buffer, state: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return e⁺ = target − m."""
        return {f"error/{name}": array - sent[name] for name, array in target.items()}


def feedback_for(codec: Codec, plan: Plan, algorithm: HasOwnFeedback) -> Feedback | None:
    """Return the feedback a site uses for a payload sent by `codec`, or None.

    Off for unbiased codecs, if ``plan.error_feedback`` is False, and for algorithms with a correction of their own.
    """
    if codec.is_unbiased or algorithm.has_own_feedback or plan.error_feedback is False:
        return None
    return ErrorFeedback()
