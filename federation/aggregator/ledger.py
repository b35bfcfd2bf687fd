"""The aggregator's journal: which lines there are, and what a restart learns from them.

Lines, by kind:

- ``opened``: a process took the experiment: epoch, port, digest of the spec. A lower epoch than any before is refused.
- ``asked``: where rounds overlap: sites were asked to train in a round, before they are told, and after how many draws.
- ``missed``: an attempt at a round missed its quorum: round, attempt, reason, each update it drops, and, where rounds
  do not overlap, what became so far of each site that the round asked.
- ``committed``: a round: its record for history and director, the score, digests of its model files, and what became
  of each site's update by its id, so that a site that missed its verdict still learns it.
- Both of these say, where rounds overlap, who trains or waits in the buffer after them, and with which task.
- ``present``: which sites are there, with the first draw and whenever that changes; `drawn`: round and attempt that had
  been drawn already, from those of the line before.
- ``released``: an operator let a site out of quarantine, for the how-manieth time; `drawn` likewise, without that site.
- ``ended``: how the experiment ended.

The journal is the truth. Model files are durable before the line that names them; `federation.aggregator.model_files`
writes over one that no line names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from federation.errors import ConflictError, StorageError
from federation.names import Attempt, Digest, Epoch, RoundNumber, SiteName
from federation.rounds import quarantine
from federation.rounds.admission import NormWindow
from federation.rounds.events import Finish, Progress, Score, Standing
from federation.rounds.history import RoundRecord, SiteOutcome
from federation.rounds.outcomes import MAX_REASON
from federation.rounds.quarantine import Suspicion
from federation.storage.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

JOURNAL_FILE = "journal"
Task = tuple[RoundNumber, Attempt]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of a site's update: which one it was, and why it did not count (empty if it did)."""

    round: RoundNumber
    attempt: Attempt
    update_id: bytes
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standpoint:
    """Where an experiment is, as its journal says.

    Attributes:
        round: round in progress, from 1.
        attempt: attempt in progress, from 1.
        expected: sites that were there; in a journal without ``present`` lines, those of the last committed round that
            were there at its end.
        pool: sites that the attempt in progress was drawn from, where others are there by now; empty: those that are.
        knows_present: there are such lines.
        standings: as the last miss of the round in progress wrote them.
        score: as the last commit wrote it.
        suspicion: what is held against sites, and who is in quarantine.
        norms: of the updates of the last committed rounds.
        model_digest: BLAKE3 of the committed ``model`` payload; None before the first commit.
        end: how the experiment ended; None while it goes on.
        end_sequence: sequence of that line; 0 while it goes on.
        port: port the last process listened at; 0 if there was none.
        asked: where rounds overlap: round and attempt of the task of each site that trains, or whose update waits.
        draws: where rounds overlap: draws of sites that the attempt in progress has made.
    """

    round: RoundNumber
    attempt: Attempt
    expected: tuple[SiteName, ...]
    score: Score
    suspicion: Suspicion
    norms: NormWindow
    model_digest: Digest | None
    end: Finish | None
    end_sequence: int
    port: int
    asked: Mapping[SiteName, Task] = field(default_factory=dict)
    draws: int = 0
    pool: tuple[SiteName, ...] = ()
    standings: Mapping[SiteName, Standing] = field(default_factory=dict)
    knows_present: bool = False

    @property
    def drawn_from(self) -> tuple[SiteName, ...]:
        """From whom the attempt in progress was, or would be, drawn; empty: not known."""
        return self.pool or (self.expected if self.knows_present else ())


_START = Standpoint(
    round=RoundNumber(1),
    attempt=Attempt(1),
    expected=(),
    score=Score(),
    suspicion=Suspicion(),
    norms=NormWindow(),
    model_digest=None,
    end=None,
    end_sequence=0,
    port=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What a line says beyond its round, where rounds overlap.

    Attributes:
        settled: task that each settled update answers.
        asked: task of each site that trains or waits in the buffer afterwards.
    """

    settled: Mapping[SiteName, Task]
    asked: Mapping[SiteName, Task]


class Ledger:
    """An open journal and what it says.

    Attributes:
        standpoint: where the experiment is.
        settled: by site, what became of its last updates: at most one of the last committed and one of the last missed.
    """

    def __init__(self, journal: Journal, standpoint: Standpoint, settled: dict[SiteName, list[Settled]]) -> None:
        self._journal = journal
        self.standpoint = standpoint
        self.settled = settled

    @classmethod
    def open(cls, folder: Path, *, epoch: Epoch, spec_digest: Digest) -> Ledger:
        """Open and replay the journal of an experiment's folder, which locks the folder. Blocks.

        Raises:
            ConflictError: a process with a higher epoch had it before, or it is another experiment's.
            StorageError: another process holds it, or it is damaged.
        """
        journal = Journal.open(folder / JOURNAL_FILE)
        try:
            standpoint, settled = _START, dict[SiteName, list[Settled]]()
            for entry in journal.entries():
                standpoint = _replay(standpoint, settled, entry.kind, entry.body, entry.sequence)
                if entry.kind == "opened":
                    _check_opened(entry.body, epoch, spec_digest)
        except (KeyError, TypeError, ValueError) as error:
            journal.close()
            raise StorageError(f"journal in {folder} was written by another version: {error!r}") from error
        except BaseException:
            journal.close()
            raise
        return cls(journal, standpoint, settled)

    @property
    def last_sequence(self) -> int:
        """Sequence of the last line."""
        return self._journal.last_sequence

    def record_opened(self, *, epoch: Epoch, port: int, spec_digest: Digest) -> int:
        """Write that this process runs the experiment. Blocks, as all of these."""
        return self._append("opened", {"epoch": epoch, "port": port, "spec_digest": spec_digest.hex()})

    def record_asked(self, task: Task, sites: Sequence[SiteName], *, draws: int = 0) -> int:
        """Write that sites are about to be asked, so that their answers are known for what they are.

        Args:
            task: what they are asked, of the attempt in progress.
            sites: who.
            draws: draws that the attempt has made with theirs; 0: they were not drawn.
        """
        body: dict[str, Any] = {"round": task[0], "attempt": task[1], "sites": list(sites)}
        return self._append("asked", {**body, "draws": draws} if draws else body)

    def record_missed(
        self,
        round_number: RoundNumber,
        attempt: Attempt,
        *,
        reason: str,
        updates: Mapping[SiteName, bytes],
        standings: Mapping[SiteName, Standing] | None = None,
        overlap: Overlap | None = None,
    ) -> int:
        """Write that an attempt missed its quorum, the ids of the updates it had, and how the round's sites stand."""
        dropped = {site: update_id.hex() for site, update_id in sorted(updates.items())}
        body = {"round": round_number, "attempt": attempt, "reason": reason, "updates": dropped}
        if standings:
            body["standings"] = {
                site: [row.progress.value, row.reason[:MAX_REASON], row.norm] for site, row in sorted(standings.items())
            }
        return self._append("missed", {**body, **_overlap_to_json(overlap)})

    def record_committed(
        self,
        record: RoundRecord,
        *,
        attempt: Attempt,
        score: Score,
        updates: Mapping[SiteName, bytes],
        suspicion: Suspicion | None = None,
        overlap: Overlap | None = None,
    ) -> RoundRecord:
        """Write a committed round and the id of each update it had, counted or not.

        Args:
            record: the round.
            attempt: attempt that made it.
            score: after it.
            updates: id of each update it settles.
            suspicion: what is held against sites after it; None: what was before.
            overlap: where rounds overlap.

        Returns:
            The record with its sequence.
        """
        ids = {site: update_id.hex() for site, update_id in sorted(updates.items())}
        body = {"record": record.to_json(), "attempt": attempt, "score": asdict(score), "updates": ids}
        if suspicion is not None and suspicion != self.standpoint.suspicion:
            body["suspicion"] = suspicion.to_json()
        return replace(record, sequence=self._append("committed", {**body, **_overlap_to_json(overlap)}))

    def record_present(self, sites: Sequence[SiteName], drawn: Task | None) -> int:
        """Write which sites are there; `drawn`: as `RecordPresent` has it."""
        body: dict[str, Any] = {"sites": list(sites)}
        return self._append("present", {**body, "drawn": list(drawn)} if drawn else body)

    def record_released(self, site: SiteName, releases: int, drawn: Task | None = None) -> int:
        """Write that a site was let out of quarantine; `drawn`: as `RecordRelease` has it."""
        body: dict[str, Any] = {"site": site, "releases": releases}
        return self._append("released", {**body, "drawn": list(drawn)} if drawn else body)

    def record_ended(self, finish: Finish) -> int:
        """Write how the experiment ended."""
        return self._append("ended", asdict(finish))

    def records(self, *, after: int = 0) -> Iterator[RoundRecord]:
        """Read committed rounds again, oldest first, each with its sequence. Blocks.

        Args:
            after: only those with a higher sequence.
        """
        for entry in self._journal.entries(after=after):
            if entry.kind == "committed":
                yield replace(RoundRecord.from_json(entry.body["record"]), sequence=entry.sequence)

    def close(self) -> None:
        """Give the journal and its lock up."""
        self._journal.close()

    def _append(self, kind: str, body: dict[str, Any]) -> int:
        sequence = self._journal.append(kind, body)
        self.standpoint = _replay(self.standpoint, self.settled, kind, body, sequence)
        return sequence


def _check_opened(body: dict[str, Any], epoch: Epoch, spec_digest: Digest) -> None:
    if body["epoch"] > epoch:
        raise ConflictError(
            f"this folder was taken over by epoch {body['epoch']}; this process has epoch {epoch}: it is superseded"
        )
    if body["spec_digest"] != spec_digest.hex():
        raise ConflictError("this folder is of another experiment: its spec has another digest")


def _replay(
    standpoint: Standpoint, settled: dict[SiteName, list[Settled]], kind: str, body: dict[str, Any], sequence: int
) -> Standpoint:
    """Return the standpoint after one line; `settled` is brought up to date in place."""
    if kind == "opened":
        return replace(standpoint, port=int(body["port"]))
    if kind == "asked":
        task = (RoundNumber(body["round"]), Attempt(body["attempt"]))
        asked = {**standpoint.asked, **dict.fromkeys(map(SiteName, body["sites"]), task)}
        return replace(standpoint, asked=asked, draws=max(standpoint.draws, int(body.get("draws", 0))))
    if kind == "missed":
        return _after_miss(standpoint, settled, body)
    if kind == "committed":
        return _after_commit(standpoint, settled, body)
    if kind == "present":
        there = tuple(map(SiteName, body["sites"]))
        pool = standpoint.drawn_from if _is_drawn(standpoint, body) else ()
        return replace(standpoint, expected=there, pool=pool, knows_present=True)
    if kind == "released":
        site = SiteName(body["site"])
        released = quarantine.release(standpoint.suspicion, site, int(body["releases"]))
        pool = standpoint.pool
        if _is_drawn(standpoint, body):
            pool = tuple(each for each in standpoint.drawn_from if each != site)
        return replace(standpoint, suspicion=released, pool=pool)
    if kind == "ended":
        return replace(standpoint, end=Finish(**body), end_sequence=sequence)
    return standpoint


def _after_miss(standpoint: Standpoint, settled: dict[SiteName, list[Settled]], body: dict[str, Any]) -> Standpoint:
    tasks = _tasks_from_json(body.get("tasks", {}))
    for site, update_id in body["updates"].items():
        task = tasks.get(SiteName(site), (RoundNumber(body["round"]), Attempt(body["attempt"])))
        _settle(settled, site, task, update_id, "quorum lost")
    return replace(
        standpoint,
        attempt=Attempt(body["attempt"] + 1),
        asked=_tasks_from_json(body.get("asked", {})),
        draws=0,
        pool=(),
        standings={
            SiteName(site): Standing(progress=Progress(progress), reason=why, norm=norm)
            for site, (progress, why, norm) in body.get("standings", {}).items()
        },
    )


def _after_commit(standpoint: Standpoint, settled: dict[SiteName, list[Settled]], body: dict[str, Any]) -> Standpoint:
    record = RoundRecord.from_json(body["record"])
    reasons = {row.site: "" if row.outcome is SiteOutcome.COUNTED else row.reason for row in record.sites}
    tasks = _tasks_from_json(body.get("tasks", {}))
    for site, update_id in body["updates"].items():
        task = tasks.get(SiteName(site), (record.round, Attempt(body["attempt"])))
        _settle(settled, site, task, update_id, reasons.get(SiteName(site), "late"))
    there = tuple(row.site for row in record.sites if row.outcome is not SiteOutcome.LOST)
    return replace(
        standpoint,
        round=RoundNumber(record.round + 1),
        attempt=Attempt(1),
        expected=standpoint.expected if standpoint.knows_present else there,
        pool=(),
        standings={},
        score=Score(**body["score"]),
        suspicion=Suspicion.from_json(body["suspicion"], record) if "suspicion" in body else standpoint.suspicion,
        norms=standpoint.norms.after(record),
        model_digest=Digest(bytes.fromhex(record.model_digest)),
        asked=_tasks_from_json(body.get("asked", {})),
        draws=0,
    )


def _is_drawn(standpoint: Standpoint, body: dict[str, Any]) -> bool:
    """Whether a line says that the attempt in progress had been drawn before it."""
    return tuple(body.get("drawn", ())) == (standpoint.round, standpoint.attempt)


def _overlap_to_json(overlap: Overlap | None) -> dict[str, Any]:
    return {} if overlap is None else {"tasks": dict(overlap.settled), "asked": dict(overlap.asked)}


def _tasks_from_json(document: dict[str, list[int]]) -> dict[SiteName, Task]:
    return {SiteName(site): (RoundNumber(row[0]), Attempt(row[1])) for site, row in document.items()}


def _settle(settled: dict[SiteName, list[Settled]], site: str, task: Task, update_id: str, reason: str) -> None:
    fact = Settled(round=task[0], attempt=task[1], update_id=bytes.fromhex(update_id), reason=reason)
    # A site keeps one update at most, so of each site only the newest few can ever be asked for.
    settled[SiteName(site)] = [*settled.get(SiteName(site), [])[-3:], fact]
