"""The models in play: the one that sites train from, and the candidate they evaluate; on disk and on offer.

A candidate's payloads become those of the next round when it is committed, so a site that has evaluated it holds them
already. The candidate becomes durable while it is being evaluated. Where the plan compresses what the server sends,
payload ``model`` is what sites hold, x̂, not the server's own model x; beside it is the step that leads there from the x̂
before (`federation.storage.steps`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from federation.aggregator.broadcast import Offer, Offers, make_offer, make_offer_of
from federation.names import PayloadName
from federation.wire.payloads import BASE, BUFFERS, MODEL, OPTIMIZER, STEP, Payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from federation.aggregator.candidates import Candidate, Contribution
    from federation.aggregator.checkpoints import Checkpoints
    from federation.names import Digest, RoundNumber


_EVALUATED = frozenset({MODEL, STEP, BUFFERS})


class Models:
    """The models of one experiment.

    Args:
        checkpoints: their files; only used on `disk`.
        offers: where sites find them.
        disk: the one thread that has checkpoints.

    Attributes:
        base: tensors that are delivered once; set by `open`.
        candidate: the model that waits to be committed; None otherwise.
    """

    base: Offer

    def __init__(self, checkpoints: Checkpoints, offers: Offers, disk: Executor) -> None:
        self.candidate: Candidate | None = None
        self._checkpoints = checkpoints
        self._offers = offers
        self._disk = disk
        self._model: list[Offer] = []
        self._candidate_offers: list[Offer] = []
        self._syncing: asyncio.Future[None] | None = None

    @property
    def for_training(self) -> list[Offer]:
        """Payloads of a train task: the model, the step to it if any, aggregated optimizer state, the method's own."""
        return self._model

    @property
    def for_evaluation(self) -> list[Offer]:
        """Payloads of an evaluate task: the candidate, and the step to it if any."""
        return [offer for offer in self._candidate_offers if offer.payload.name in _EVALUATED]

    @property
    def digest(self) -> Digest:
        """Digest of the model that sites train from, x̂ where the plan compresses what the server sends."""
        return _digest(self._model[0])

    @property
    def candidate_digest(self) -> Digest | None:
        """Digest of the model that sites evaluate; None without one."""
        return _digest(self._candidate_offers[0]) if self._candidate_offers else None

    async def open(self) -> None:
        """Offer the committed model.

        Raises:
            StorageError: the disk failed.
        """
        self.base, self._model = await self._on_disk(self._open)
        for offer in (self.base, *self._model):
            self._offers.add(offer)

    async def combine(
        self, round_number: RoundNumber, contributions: list[Contribution], *, connected: int, sync: bool
    ) -> None:
        """Make and offer the candidate of a round.

        Args:
            round_number: the round.
            contributions: what it is made of.
            connected: sites here now.
            sync: it will be a while before it is committed: begin to make it durable, and leave its scores until then.

        Raises:
            PlanError: the result is not finite.
            StorageError: the disk failed.
        """
        self.candidate, self._candidate_offers = await self._on_disk(
            self._combine, round_number, contributions, connected, sync
        )
        for offer in self._candidate_offers:
            self._offers.add(offer)
        if sync:
            self._syncing = asyncio.ensure_future(self._on_disk(self._checkpoints.sync, self.candidate))

    async def synced(self) -> Candidate:
        """Return the candidate once it is as durable as `combine` was asked to make it.

        Raises:
            RuntimeError: there is none.
            StorageError: the disk failed.
        """
        if self.candidate is None:
            raise RuntimeError("there is no candidate to commit")
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            await syncing
        return self.candidate

    def take_over(self) -> None:
        """Let the committed candidate be the model that sites train from."""
        for offer in self._model:
            self._offers.retire(offer)
        self._model, self._candidate_offers, self.candidate = self._candidate_offers, [], None

    async def close(self) -> None:
        """Forget a candidate that was not committed."""
        if self._syncing is not None:
            await asyncio.wait({self._syncing})
        if self.candidate is not None:
            candidate, self.candidate = self.candidate, None
            await self._on_disk(candidate.abort)

    def _open(self) -> tuple[Offer, list[Offer]]:
        base, model = self._checkpoints.open_base(), self._checkpoints.open_sent()
        optimizer = self._checkpoints.open_optimizer()
        offers = [make_offer(MODEL, model, model.digest())]
        if optimizer is not None:
            offers.append(make_offer(OPTIMIZER, optimizer, optimizer.digest()))
        broadcast = self._checkpoints.algorithm.broadcast
        for name, slot in self._checkpoints.open_slots().items():
            if name in broadcast:
                offers.append(make_offer(PayloadName(name), slot, slot.digest()))
            else:
                slot.close()
        return make_offer(BASE, base, base.digest()), offers

    def _combine(
        self, round_number: RoundNumber, contributions: list[Contribution], connected: int, scores_later: bool
    ) -> tuple[Candidate, list[Offer]]:
        candidate = self._checkpoints.combine(
            round_number, contributions, connected=connected, scores_later=scores_later
        )
        offers = [make_offer(MODEL, candidate.open(), candidate.sent_digest), *self._step_offers(candidate)]
        if candidate.optimizer_digest is not None:
            offers.append(make_offer(OPTIMIZER, candidate.open_optimizer(), candidate.optimizer_digest))
        for name in self._checkpoints.algorithm.broadcast:
            offers.append(make_offer(PayloadName(name), candidate.open_slot(name), candidate.slot_digests[name]))
        return candidate, offers

    def _step_offers(self, candidate: Candidate) -> list[Offer]:
        step, schema = candidate.step, self._checkpoints.schema
        if step is None:
            return []
        if step.nbytes >= schema.federated.nbytes:  # of a model so small, frames cost more than they save
            step.close()
            return []
        change = Payload(
            name=STEP,
            schema_digest=schema.parameters.digest,
            codec=self._checkpoints.downlink,
            encoded_bytes=step.change.nbytes,
            digest=step.change.digest(),
            from_digest=step.from_digest,
        )
        offers = [make_offer_of(change, step.change)]
        if step.buffers is not None:
            buffers = Payload(
                name=BUFFERS,
                schema_digest=schema.buffers.digest,
                encoded_bytes=step.buffers.nbytes,
                digest=step.buffers.digest(),
            )
            offers.append(make_offer_of(buffers, step.buffers))
        return offers

    async def _on_disk(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *args)


def _digest(offer: Offer) -> Digest:
    if offer.payload.digest is None:
        raise RuntimeError("an offer has a digest")
    return offer.payload.digest
