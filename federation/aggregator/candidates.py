"""What a round is made of, and what it makes: contributions in, a candidate of several files out.

The files of a candidate become durable one after another and are then named by one journal line, so model, optimizer
state and the method's state are always of the same round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from federation.aggregation.rule import RuleReport
    from federation.aggregator.steps import Step
    from federation.names import Digest, PayloadName, RoundNumber, SiteName
    from federation.storage.disk import Readable
    from federation.storage.safetensors_files import ModelFile, ModelWriter

MODEL, OPTIMIZER, HELD = "model", "optimizer", "held"


def slot_file(slot: str) -> str:
    """Return the name of the file of a vector of the method's state."""
    return f"method-{slot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One admitted update.

    Attributes:
        site: whose it is.
        payloads: as they lie in the spool, compressed or not.
        examples: training examples behind it.
        steps: local optimizer steps.
        staleness: steps of the server between its task and this round.
        base: file of the model it starts from, for methods that must know it.
    """

    site: SiteName
    payloads: Mapping[PayloadName, Readable]
    examples: int
    steps: int = 0
    staleness: int = 0
    base: Path | None = None


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A finished model that is not committed, with the state of optimizer and method that goes with it.

    Attributes:
        round: round it would commit.
        digest: BLAKE3 of the model x⁺.
        optimizer_digest: BLAKE3 of the aggregated optimizer state; None without one.
        slot_digests: BLAKE3 of each vector of the method's state.
        update_norm: L2 norm of the aggregated change of the parameters.
        weights: weight of each contribution's change, in name order.
        scores: of each contribution's change, by site.
        scalars: what the method computed for the round.
        total_sites: N, sites the method counts with.
        report: what the rule says of the round.
        step: what takes sites to it, where the plan compresses what the server sends; None otherwise.
    """

    round: RoundNumber
    digest: Digest
    optimizer_digest: Digest | None = None
    slot_digests: Mapping[str, Digest] = field(default_factory=dict)
    update_norm: float
    weights: tuple[float, ...] = ()
    scores: Mapping[SiteName, Mapping[str, float]] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    total_sites: int = 0
    report: RuleReport | None = None
    step: Step | None = None
    _writers: dict[str, ModelWriter] = field(default_factory=dict)

    @property
    def sent_digest(self) -> Digest:
        """BLAKE3 of what sites will hold: the ``model`` payload of its tasks."""
        return self.step.digest if self.step is not None else self.digest

    def open(self) -> ModelFile:
        """Open what sites will hold for reading, to be evaluated."""
        return self._writers[MODEL if self.step is None else HELD].reader()

    def open_optimizer(self) -> ModelFile:
        """Open its optimizer state for reading."""
        return self._writers[OPTIMIZER].reader()

    def open_slot(self, name: str) -> ModelFile:
        """Open a vector of the method's state for reading."""
        return self._writers[slot_file(name)].reader()

    def sync(self) -> None:
        """Make it durable, unless it is; the journal may then name it. May run while it is being evaluated.

        Raises:
            StorageError: the disk failed.
        """
        for writer in self._writers.values():
            writer.sync()

    def close(self) -> None:
        """Let go of its files; they stay."""
        for writer in self._writers.values():
            writer.commit()

    def abort(self) -> None:
        """Forget it; nothing happens after `close`. The step is whoever's offers it."""
        for writer in self._writers.values():
            writer.abort()
