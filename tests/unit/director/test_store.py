"""The store's contract, run on SQLite and, where a server is installed, on PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from director.lifecycle import Change
from director.scheduling import Match, Shard
from director.store import artifacts, events, experiments, lease, rounds, sites, tables
from director.store.database import Database
from director.store.records import ArtifactRecord
from federation.errors import ConfigurationError, ConflictError, NotFoundError, StaleRoundError, StorageError
from federation.names import Epoch, ExperimentState, ShardName, SiteName
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sqlalchemy.orm import Session

    from director.store.records import Submission

S = ExperimentState


class Opened(Database):
    """A database that says where it is, so that a test can open it again."""

    def __init__(self, url: str, announce: Callable[[frozenset[str]], None]) -> None:
        super().__init__(url, announce)
        self.url = url


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, tmp_path: Path, announced: list[frozenset[str]]
) -> AsyncIterator[Opened]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/director.db" if sqlite else request.getfixturevalue("postgres_url")
    opened = Opened(url, announced.append)
    await opened.migrate()
    yield opened
    if not sqlite:
        await opened.transact(_empty)
    await opened.close()


def _empty(session: Session) -> None:
    for table in reversed(tables.Table.metadata.sorted_tables):
        session.execute(table.delete())


def change(to: S, reason: str = "because", at: float = 101.0) -> Change:
    return Change(to=to, reason=reason, actor="spiffe://test/director/director", at=at)


def report(sequence: int, number: int) -> pb.RoundReport:
    return pb.RoundReport(
        round=number,
        epoch=1,
        sequence=sequence,
        started_at=50.0,
        seconds=1.5,
        phase_seconds={"collect": 1.0},
        metrics={"loss": 0.25},
        model_digest="ef" * 32,
        is_best=True,
        bytes_up=2**40,
        rule_note="the weighted mean",
        quarantined=[pb.QuarantinedSite(site="west", since_round=1, releases=2, reason="far")],
        unevaluated={"south": "connection lost"},
        contributions=[
            pb.Contribution(site="north", outcome="counted", examples=10, weight=1.0, scores={"distance": 0.5}),
            pb.Contribution(site="south", outcome="lost", reason="stream cut"),
        ],
    )


async def test_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    def differences(session: Session) -> list[object]:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        return list(compare_metadata(context, tables.Table.metadata))

    assert await database.transact(differences) == []


async def test_migrating_twice_changes_nothing(database: Database, experiment: str) -> None:
    await database.migrate()
    assert (await database.transact(experiments.get, experiment)).name == "digits"


async def test_an_experiment_is_given_back_as_it_was_submitted(database: Database, experiment: str) -> None:
    found = await database.transact(experiments.get, experiment)
    assert (found.state, found.submitted_by, found.epoch) == (S.SUBMITTED, "alice", 0)
    assert (found.need.sites, found.need.sample_shape, found.need.target_shape) == (2, (30,), None)
    assert await database.transact(experiments.plan_json, experiment) == '{"rounds":3}'
    signed = await database.transact(experiments.signed, experiment)
    assert (signed.manifest, signed.signature, signed.signing_key) == (b"{}", b"s", b"k")


async def test_an_unknown_experiment_is_named(database: Database) -> None:
    with pytest.raises(NotFoundError, match="no experiment 'nothing'"):
        await database.transact(experiments.get, "nothing")


async def test_the_same_nonce_is_refused_and_leaves_no_experiment(
    database: Database, experiment: str, make_submission: Callable[..., Submission]
) -> None:
    again = make_submission("other-abcdefgh", nonce=experiment)
    with pytest.raises(ConflictError, match="submitted before"):
        await database.transact(experiments.add, again)
    assert len(await database.transact(experiments.find)) == 1


async def test_a_discarded_submission_may_be_made_again(
    database: Database, experiment: str, make_submission: Callable[..., Submission]
) -> None:
    await database.transact(experiments.discard, experiment)
    await database.transact(experiments.add, make_submission())
    assert len(await database.transact(experiments.find)) == 1


async def test_what_got_past_submitted_is_not_discarded(database: Database, experiment: str) -> None:
    await database.transact(experiments.change, experiment, change(S.QUEUED))
    await database.transact(experiments.discard, experiment)
    assert len(await database.transact(experiments.find)) == 1


async def test_a_change_leaves_a_transition_and_an_event_and_is_announced(
    database: Database, experiment: str, announced: list[frozenset[str]]
) -> None:
    announced.clear()
    assert await database.transact(experiments.change, experiment, change(S.QUEUED, "stored"))
    await asyncio.sleep(0)
    assert announced == [frozenset({experiment})]
    history = await database.transact(experiments.transitions, experiment)
    assert [(item.state, item.reason) for item in history] == [(S.SUBMITTED, "submitted"), (S.QUEUED, "stored")]
    seen = await database.transact(events.after, experiment, 0, 10)
    assert [event.kind for event in seen] == ["state", "state"]
    assert seen[1].transition.state == pb.EXPERIMENT_STATE_QUEUED
    assert seen[0].sequence < seen[1].sequence


async def test_repeating_a_change_changes_nothing(database: Database, experiment: str) -> None:
    await database.transact(experiments.change, experiment, change(S.CANCELLED))
    assert not await database.transact(experiments.change, experiment, change(S.CANCELLED))
    assert len(await database.transact(experiments.transitions, experiment)) == 2


async def test_a_terminal_state_is_immutable(database: Database, experiment: str) -> None:
    await database.transact(experiments.change, experiment, change(S.CANCELLED))
    with pytest.raises(ConflictError, match="cancelled and cannot become queued"):
        await database.transact(experiments.change, experiment, change(S.QUEUED))


async def test_an_epoch_is_granted_once(database: Database, experiment: str) -> None:
    await database.transact(experiments.change, experiment, change(S.QUEUED))
    granted = await database.transact(experiments.grant_epoch, experiment, Epoch(0), change(S.RUNNING))
    assert granted == 1
    with pytest.raises(ConflictError, match="cannot be granted"):
        await database.transact(experiments.grant_epoch, experiment, Epoch(0), change(S.RUNNING))
    assert (await database.transact(experiments.get, experiment)).state is S.RUNNING


async def test_an_older_epoch_may_not_report_nor_end(database: Database, experiment: str) -> None:
    await database.transact(experiments.change, experiment, change(S.QUEUED))
    await database.transact(experiments.grant_epoch, experiment, Epoch(0), change(S.RUNNING))
    await database.transact(experiments.grant_epoch, experiment, Epoch(1), change(S.RUNNING))
    with pytest.raises(StaleRoundError, match=r"epoch 1 .* is over: epoch 2"):
        await database.transact(experiments.require_epoch, experiment, Epoch(1))
    with pytest.raises(StaleRoundError):
        await database.transact(experiments.change, experiment, change(S.COMPLETED), epoch=Epoch(1))


async def test_find_filters_by_user_project_and_state(
    database: Database, experiment: str, make_submission: Callable[..., Submission]
) -> None:
    await database.transact(experiments.add, make_submission("bobs-abcdefgh", user="bob", at=200.0))
    await database.transact(experiments.change, "bobs-abcdefgh", change(S.QUEUED))
    everything = await database.transact(experiments.find)
    assert [item.id for item in everything] == ["bobs-abcdefgh", experiment]
    assert [item.id for item in await database.transact(experiments.find, user="alice")] == [experiment]
    assert [item.id for item in await database.transact(experiments.find, states=[S.QUEUED])] == ["bobs-abcdefgh"]
    assert await database.transact(experiments.find, project="other") == []
    assert await database.transact(experiments.count_open, "bob") == 1
    assert (await database.transact(experiments.count_by_state))[S.QUEUED] == 1


async def test_a_waiting_reason_is_an_event_only_when_it_is_new(database: Database, experiment: str) -> None:
    await database.transact(experiments.change, experiment, change(S.QUEUED))
    for _ in range(2):
        await database.transact(experiments.explain_waiting, experiment, "waits for sites", 102.0)
    seen = await database.transact(events.after, experiment, 0, 10)
    assert [event.text for event in seen if event.kind == "assignment"] == ["waits for sites"]


async def test_a_round_comes_back_as_it_was_reported_and_counts_once(database: Database, experiment: str) -> None:
    assert await database.relaxed(rounds.store, experiment, [report(3, 1)], 60.0) == 1
    assert await database.relaxed(rounds.store, experiment, [report(3, 1)], 61.0) == 0
    assert await database.transact(rounds.reports, experiment) == [report(3, 1)]
    assert await database.transact(rounds.last_sequence, experiment) == 3
    assert (await database.transact(experiments.get, experiment)).rounds_done == 1
    seen = await database.transact(events.after, experiment, 0, 10)
    assert [event.text for event in seen if event.kind == "round"] == ["round 1: 1 of 2 sites counted, loss 0.25"]


async def test_a_burst_of_rounds_is_stored_in_order_and_what_is_known_is_skipped(
    database: Database, experiment: str
) -> None:
    await database.relaxed(rounds.store, experiment, [report(3, 1)], 60.0)
    burst = [report(3, 1), report(4, 2), report(5, 3), report(5, 3)]
    assert await database.relaxed(rounds.store, experiment, burst, 61.0) == 2
    assert await database.transact(rounds.reports, experiment) == [report(3, 1), report(4, 2), report(5, 3)]
    assert (await database.transact(experiments.get, experiment)).rounds_done == 3
    seen = await database.transact(events.after, experiment, 0, 10)
    assert [event.report.round for event in seen if event.kind == "round"] == [1, 2, 3]


async def test_progress_of_a_committed_round_is_pruned(database: Database, experiment: str) -> None:
    progress = pb.Event(experiment=experiment, kind="phase", phase=pb.PhaseChange(round=1, phase="collect"))
    await database.relaxed(events.append, progress)
    await database.relaxed(rounds.store, experiment, [report(3, 1)], 60.0)
    kinds = [event.kind for event in await database.transact(events.after, experiment, 0, 10)]
    assert kinds == ["state", "round"]


async def test_offers_replace_each_other_whole(database: Database) -> None:
    def shard(name: str) -> Shard:
        return Shard(
            name=ShardName(name),
            kind="tabular",
            train_examples=10,
            validation_examples=2,
            sample_shape=(30,),
            target_shape=(),
            description="ward 3",
        )

    await database.transact(sites.attend, "north", "0.1.0", 1.0)
    await database.transact(sites.offer, "north", [shard("a"), shard("b")], 2.0)
    await database.transact(sites.offer, "north", [shard("c")], 3.0)
    (found,) = await database.transact(sites.offers, {"north"})
    assert found.online
    assert found.shards == (shard("c"),)
    assert [envoy.last_seen_at for envoy in await database.transact(sites.envoys)] == [3.0]


async def test_a_site_is_asked_once_and_what_it_refused_stays_refused(database: Database, experiment: str) -> None:
    found = Match(site=SiteName("north"), shards=(ShardName("a"),), train_examples=10, validation_examples=2)
    assert await database.transact(sites.ask, experiment, [found], 1.0) == ["north"]
    assert await database.transact(sites.ask, experiment, [found], 2.0) == []
    assert await database.transact(sites.answer, experiment, "north", to=sites.REFUSED, reason="no", at=3.0)
    assert not await database.transact(sites.answer, experiment, "north", to=sites.ACCEPTED, reason="", at=4.0)
    (part,) = await database.transact(sites.participations, experiment)
    assert (part.answer, part.reason, part.train_examples) == ("refused", "no", 10)


async def test_quarantine_follows_the_reports_and_a_release_outweighs_those_that_do_not_know_of_it(
    database: Database, experiment: str
) -> None:
    def held(releases: int, since: int = 4) -> pb.RoundReport:
        row = pb.QuarantinedSite(site="north", since_round=since, releases=releases, reason="far")
        return pb.RoundReport(round=since, epoch=1, sequence=since, quarantined=[row])

    async def note(found: pb.RoundReport) -> tuple[int, str, int]:
        await database.transact(sites.note_quarantine, experiment, found, "spiffe://test/aggregator/a", 5.0)
        (part,) = await database.transact(sites.participations, experiment)
        return part.quarantined_since, part.quarantine_reason, part.releases

    found = Match(site=SiteName("north"), shards=(ShardName("a"),), train_examples=10, validation_examples=2)
    await database.transact(sites.ask, experiment, [found], 1.0)
    assert await note(held(0)) == (4, "far", 0)
    assert await note(held(0)) == (4, "far", 0)
    assert await database.transact(sites.quarantined_in, ["submitted"]) == {"north": [experiment]}
    who = {"actor": "spiffe://test/operator/o", "reason": "a new scanner", "at": 6.0}
    assert await database.transact(lambda session: sites.release(session, experiment, "north", **who)) == 4
    assert await database.transact(lambda session: sites.release(session, experiment, "north", **who)) == 0
    assert await note(held(0)) == (0, "", 1), "the aggregator had not obeyed yet"
    assert await note(pb.RoundReport(round=5, epoch=1, sequence=5)) == (0, "", 1)
    assert await note(held(1, since=9)) == (9, "far", 1)
    seen = await database.transact(events.after, experiment, 0, 20)
    assert [event.text for event in seen if event.kind == "site"] == [
        "north is in quarantine since round 4: far",
        "north is released from quarantine: a new scanner",
        "north is in quarantine since round 9: far",
    ]
    rows = await database.transact(lambda session: list(session.scalars(select(tables.Audit))))
    assert [(row.action, row.actor, row.subject) for row in rows][:2] == [
        ("QuarantineSite", "spiffe://test/aggregator/a", f"{experiment}/north"),
        ("ReleaseSite", "spiffe://test/operator/o", f"{experiment}/north"),
    ]
    with pytest.raises(NotFoundError, match="'west' takes no part"):
        await database.transact(lambda session: sites.release(session, experiment, "west", **who))


async def test_an_answer_of_a_site_that_was_not_asked_is_refused(database: Database, experiment: str) -> None:
    with pytest.raises(NotFoundError, match="was not asked"):
        await database.transact(sites.answer, experiment, "west", to=sites.ACCEPTED, reason="", at=1.0)


async def test_an_artifact_of_the_same_name_is_replaced_and_an_unknown_one_lists_what_there_is(
    database: Database, experiment: str
) -> None:
    for number in (1, 2):
        artifact = ArtifactRecord(name="last.safetensors", bytes=5, digest="ab" * 32, round=number)
        await database.transact(artifacts.record, experiment, artifact, 1.0)
    assert [item.round for item in await database.transact(artifacts.of, experiment)] == [2]
    with pytest.raises(NotFoundError, match=r"it has: last\.safetensors"):
        await database.transact(artifacts.get, experiment, "best.safetensors")


async def test_a_second_director_is_refused_until_the_lease_runs_out(database: Database) -> None:
    assert await database.transact(lease.take, holder="one", now=100.0, lasts_s=15.0) == 1
    with pytest.raises(ConflictError, match="another director"):
        await database.transact(lease.take, holder="two", now=114.0, lasts_s=15.0)
    assert await database.transact(lease.take, holder="two", now=116.0, lasts_s=15.0) == 2
    with pytest.raises(ConflictError, match="taken by another"):
        await database.transact(lease.keep, epoch=1, now=116.0, lasts_s=15.0)


async def test_of_directors_that_take_the_lease_at_one_moment_one_has_it(database: Opened) -> None:
    others = [Database(database.url, lambda _: None) for _ in range(3)]
    taking = [
        each.transact(lease.take, holder=str(number), now=100.0, lasts_s=15.0) for number, each in enumerate(others)
    ]
    found = await asyncio.gather(*taking, return_exceptions=True)
    assert sorted(map(repr, (type(each) for each in found))) == [repr(ConflictError), repr(ConflictError), repr(int)]
    again = [
        each.transact(lease.take, holder=str(number), now=200.0, lasts_s=15.0) for number, each in enumerate(others)
    ]
    found = await asyncio.gather(*again, return_exceptions=True)
    assert [each for each in found if isinstance(each, int)] == [2]
    for each in others:
        await each.close()


async def test_a_lease_is_taken_over_from_a_dead_holder_and_after_it_was_given_up(database: Database) -> None:
    await database.transact(lease.take, holder="one", now=100.0, lasts_s=15.0)
    assert await database.transact(lease.take, holder="two", now=101.0, lasts_s=15.0, is_dead=lambda _: True) == 2
    await database.transact(lease.keep, epoch=2, now=110.0, lasts_s=15.0)
    await database.transact(lease.give_up, epoch=2)
    assert await database.transact(lease.take, holder="three", now=111.0, lasts_s=15.0) == 3


async def test_a_failed_transaction_changes_and_announces_nothing(
    database: Database, experiment: str, announced: list[frozenset[str]]
) -> None:
    announced.clear()

    def work(session: Session) -> None:
        experiments.change(session, experiment, change(S.QUEUED))
        raise ConflictError("no")

    with pytest.raises(ConflictError):
        await database.transact(work)
    await asyncio.sleep(0)
    assert announced == []
    assert (await database.transact(experiments.get, experiment)).state is S.SUBMITTED


async def test_what_the_database_raises_is_a_storage_error(database: Database) -> None:
    with pytest.raises(StorageError, match="database failed"):
        await database.transact(lambda session: session.execute(text("select * from nothing")))


async def test_the_audit_trail_records_who_and_why(database: Database) -> None:
    await database.transact(
        events.audit, at=1.0, actor="spiffe://test/user/eve", action="Submit", admitted=False, detail="changed model"
    )
    rows = await database.transact(lambda session: list(session.scalars(select(tables.Audit))))
    assert [(row.actor, row.admitted, row.detail) for row in rows] == [
        ("spiffe://test/user/eve", False, "changed model")
    ]


@pytest.mark.parametrize("url", ["nonsense", "oracle://x", "postgresql+nodriver://u:secret@h/d"])
async def test_a_database_url_that_cannot_be_used_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used") as caught:
        Database(url, lambda _: None)
    assert "secret" not in str(caught.value)
