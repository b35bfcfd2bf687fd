"""The step that takes sites from the model they hold to a candidate, where the plan compresses what the server sends.

Its files have no name: after a restart there is no step, and a site that does not hold the model yet fetches it whole.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from federation.storage.encoded import RoleOf
from federation.storage.flat import ScratchFile
from federation.storage.steps import apply_step, write_step
from federation.storage.tile_streams import copy
from federation.tensors import TensorRole

if TYPE_CHECKING:
    from pathlib import Path

    from federation.names import Digest, RoundNumber
    from federation.plan import Plan
    from federation.storage.memory import ModelSink
    from federation.storage.safetensors_files import ModelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        from_digest: BLAKE3 of x̂, the model it is added to.
        digest: BLAKE3 of x̂⁺, the model that comes out.
        change: C(x⁺ − x̂), as it travels.
        buffers: values of the buffers of x⁺; None where the model has none.
    """

    from_digest: Digest
    digest: Digest
    change: ScratchFile
    buffers: ScratchFile | None

    @property
    def nbytes(self) -> int:
        """What a site fetches, bytes."""
        return self.change.nbytes + (self.buffers.nbytes if self.buffers is not None else 0)

    def close(self) -> None:
        """Let go of its files."""
        for file in (self.change, self.buffers):
            if file is not None:
                file.close()


def make_step(
    *, model: ModelFile, held: ModelFile, writer: ModelSink, plan: Plan, round_number: RoundNumber, folder: Path
) -> Step:
    """Make a step and apply it, as every site will. Blocks.

    Args:
        model: x⁺, the new model.
        held: x̂, what sites hold.
        writer: for x̂⁺; finished here, committed or aborted by the caller.
        plan: the plan.
        round_number: round that made x⁺.
        folder: on whose disk the step is kept; the caller closes it.

    Raises:
        PlanError: the codec cannot express the change.
        StorageError: the disk failed.
    """
    with contextlib.ExitStack() as stack:
        change = stack.enter_context(contextlib.closing(ScratchFile(folder)))
        write_step(model=model, held=held, plan=plan, round_number=round_number, sink=change)
        buffers = None
        if model.schema.buffers.nbytes:
            buffers = stack.enter_context(contextlib.closing(ScratchFile(folder)))
            copy(RoleOf(model, TensorRole.BUFFER), buffers)
        digest = apply_step(held=held, step=change, buffers=buffers, downlink=plan.downlink, writer=writer)
        stack.pop_all()
    return Step(from_digest=held.digest(), digest=digest, change=change, buffers=buffers)
