"""A site that runs a whole experiment by itself, honestly.

Its data is one number per parameter, training moves the model halfway there, and the loss is the mean squared distance,
so what a federation of such sites must arrive at is known exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from federation.compression import encode_payload, load_codec
from federation.tensors import pack, unpack
from federation.testing.scripted_sites import Finished, ScriptedSite
from federation.v1 import aggregator_pb2 as pb
from federation.wire.payloads import BUFFERS, DELTA, IDENTITY_CODEC, OPTIMIZER

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from federation.plan import PayloadPlan

Arrays = dict[str, "npt.NDArray[Any]"]


class HonestSite(ScriptedSite):
    """A site whose data is one number: every parameter should be `target`.

    Args:
        target: what its data says.
        rest: as `ScriptedSite`.
    """

    def __init__(self, *rest: Any, target: float = 1.0, **options: Any) -> None:
        super().__init__(*rest, **options)
        self.target = target

    async def run(self) -> str:
        """Take part to the end, and return the outcome.

        Raises:
            FederationError: the session failed.
        """
        await self.connect()
        await self.ready()
        try:
            while True:
                await self.answer(await self.next_task())
        except Finished as end:
            return end.outcome

    async def answer(self, task: pb.Task) -> None:
        """Do one task."""
        model = unpack(self.meeting.spec.schema_.federated, await self.load(task))
        if task.kind == pb.TASK_KIND_EVALUATE:
            await self.report(task, {"loss": self.loss(model)})
        else:
            payloads = self.train(task, model)
            await self.send(task, self.header(task, payloads, {"loss": self.loss(model)}), payloads)

    async def send(self, task: pb.Task, header: pb.UpdateHeader, payloads: Mapping[str, bytes]) -> None:
        """Upload the update of a task."""
        await self.push(header, payloads)

    def loss(self, model: Arrays) -> float:
        """Mean squared distance of all float parameters from the target."""
        names = [spec.name for spec in self.meeting.spec.schema_.parameters]
        squares = [np.square(model[name].astype(np.float64) - self.target) for name in names]
        return float(np.mean(np.concatenate([part.ravel() for part in squares])))

    def train(self, task: pb.Task, model: Arrays) -> dict[str, bytes]:
        """Return the payloads of an update that goes halfway to the target."""
        schema = self.meeting.spec.schema_
        delta = {
            spec.name: ((self.target - model[spec.name].astype(np.float64)) / 2).astype(spec.dtype.numpy)
            for spec in schema.parameters
        }
        payloads = {str(DELTA): bytes(pack(schema.parameters, delta))}
        if schema.buffers.nbytes:
            values = {
                spec.name: model[spec.name] + np.ones((), dtype=spec.dtype.numpy) if spec.dtype.is_float
                else np.full(spec.shape, task.round, dtype=spec.dtype.numpy)
                for spec in schema.buffers
            }  # fmt: skip
            payloads[str(BUFFERS)] = bytes(pack(schema.buffers, values))
        if self.meeting.spec.optimizer_schema.nbytes:
            state = self.meeting.spec.optimizer_schema
            full = {spec.name: np.full(spec.shape, self.target, dtype=spec.dtype.numpy) for spec in state}
            payloads[str(OPTIMIZER)] = bytes(pack(state, full))
        return {str(plan.name): self._encoded(task, plan, payloads) for plan in self.meeting.spec.uploads()}

    def _encoded(self, task: pb.Task, plan: PayloadPlan, payloads: Mapping[str, bytes]) -> bytes:
        """Return a payload as it travels: a method's vectors are the change once more, its scalars are 1."""
        data = payloads.get(plan.name)
        if data is None:
            parameters = self.meeting.spec.schema_.parameters
            if plan.schema == parameters.widened:
                delta = unpack(parameters, payloads[DELTA])
                wide = {name: delta[name].astype(plan.schema[name].dtype.numpy) for name in delta}
                data = bytes(pack(plan.schema, wide))
            else:
                data = np.ones(len(plan.schema), dtype="<f8").tobytes()
        if plan.codec == IDENTITY_CODEC:
            return data
        return encode_payload(plan.schema, data, load_codec(plan.codec), seed=task.round)
