"""Watching an experiment: what a watcher is told when the experiment ends at the worst moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from director import lifecycle
from director.bulletin import Bulletin
from director.desk import Desk
from director.store import events, experiments
from director.store.database import Database
from federation.names import ExperimentState, Identity
from federation.transport.authority import Peer
from federation.transport.calls import Call
from federation.v1 import director_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from director.store.records import Submission

ALICE = "spiffe://test/user/alice"


class EndingDatabase(Database):
    """Cancels the experiment right after a watcher has read that there is nothing new."""

    has_ended = False

    async def relaxed(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = await super().relaxed(work, *args, **kwargs)
        if work is events.after and not found and not self.has_ended:
            self.has_ended = True
            cancelled = lifecycle.Change(to=ExperimentState.CANCELLED, reason="enough", actor=ALICE, at=1.0)
            await self.transact(experiments.change, args[0], cancelled)
        return found


async def test_a_watcher_is_told_of_an_end_that_came_while_he_was_asking(
    tmp_path: Path, make_submission: Callable[..., Submission]
) -> None:
    bulletin = Bulletin()
    database = EndingDatabase(f"sqlite:///{tmp_path}/director.db", bulletin.announce)
    await database.migrate()
    await database.transact(experiments.add, make_submission())
    nobody = cast("Any", None)
    desk = Desk(database=database, bulletin=bulletin, logs=nobody, attendance=nobody, overseer=nobody)
    alice = Peer(identity=Identity.parse(ALICE), expires_at=1e12, serial=1, fingerprint="sha256:00")
    request = pb.WatchExperimentRequest(experiment="digits-abcdefgh")
    seen = [event async for event in desk.watch(request, Call(method="watch", peer=alice, raw=nobody))]
    await database.close()
    assert seen[-1].transition.state == pb.EXPERIMENT_STATE_CANCELLED
