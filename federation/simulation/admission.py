"""Whether a simulated update counts: the checks a collaborator and an aggregator make of its bytes, in that order.

1. Every number is finite, else the site fails, as its own collaborator would have it (NotFinite).
2. Its examples and the norm of its change are within what the plan allows, else it is refused. Norms of the last rounds
   are those of when it comes, not of when its site trained: the engine looks at them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from federation.errors import Refusal, TaskError, UpdateRejectedError
from federation.rounds.admission import NormWindow, check_norm
from federation.storage.encoded import IDENTITY, decoded
from federation.tensors.scan import NotFiniteError, TensorScan, norm_of
from federation.training.exchange import DELTA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.names import PayloadName
    from federation.plan import ExperimentSpec, PayloadPlan
    from federation.simulation.memory import Payload

_PIECE_BYTES = 1 << 19


class Admission:
    """The checks of one experiment.

    Args:
        spec: the experiment.
    """

    def __init__(self, spec: ExperimentSpec) -> None:
        self._plans = spec.uploads()
        self._plan = spec.plan

    def check(self, payloads: Mapping[PayloadName, Payload], examples: int) -> float:
        """Return the L2 norm of an update's change, to be held against those of the last rounds when it comes.

        Args:
            payloads: as they lie in the update's slot.
            examples: training examples behind it.

        Raises:
            TaskError: NotFinite: a number is NaN or infinite, or too large to be squared.
            UpdateRejectedError: with EXAMPLES or NORM.
        """
        norm = 0.0
        for plan in self._plans:
            try:
                found = _scan(payloads[plan.name], plan)
            except NotFiniteError as error:
                raise TaskError("NotFinite", traceback=f"payload {plan.name!r}: {error}") from error
            if plan.name == DELTA:
                norm = found
        most = self._plan.max_examples
        if most is not None and examples > most:
            raise UpdateRejectedError(
                Refusal.EXAMPLES, f"the update claims {examples} examples; this site may claim 1 to {most}"
            )
        check_norm(norm, self._plan, NormWindow())
        return norm


def _scan(payload: Payload, plan: PayloadPlan) -> float:
    """Return the L2 norm of a payload's floats, decoded if it is compressed."""
    if plan.codec == IDENTITY:
        return norm_of(plan.schema, payload.bytes())
    scan = TensorScan(plan.schema)
    flat = decoded(payload, plan)
    tile = np.empty(min(_PIECE_BYTES, flat.nbytes), dtype=np.uint8)
    for start in range(0, flat.nbytes, _PIECE_BYTES):
        piece = tile[: min(_PIECE_BYTES, flat.nbytes - start)].data
        flat.pread_into(start, piece)
        scan.feed(piece)
    return scan.norm
