"""How an envoy renews its certificate, alone and in the middle of a round."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import ConflictError
from federation.names import Identity, Role
from federation.pki import requests
from federation.pki.authority import DAY_S

from .envoy_hosts import EXPERIMENT, accepted, finish

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(180)


async def test_a_certificate_is_renewed_in_the_middle_of_a_round(
    make_trial: Any,
    aggregator_of: Any,
    director: Any,
    make_host: Any,
    pki: Any,
    wait_for_end: Any,
    tmp_path: Path,
) -> None:
    tls = pki.issue_due(Role.ENVOY, "north")
    old = tls.facts().serial
    asked, granted = asyncio.Event(), asyncio.Event()
    issued = []

    async def renew(request: bytes) -> bytes:
        asked.set()
        await granted.wait()
        identity = tls.facts().identity
        issued.append(requests.renew(pki.authority, identity, request, now=time.time(), lifetime_s=30 * DAY_S))
        return issued[-1].pem

    director.renew = renew
    os.mkfifo(tmp_path / "gate")
    trial = make_trial(f"open({str(tmp_path / 'gate')!r}).read()")
    aggregator, host = await aggregator_of(trial), make_host()
    session, site, child = await accepted(trial, aggregator, director, host)
    await asyncio.wait_for(asked.wait(), 30)
    assert (session.call.peer.serial, site.call.peer.serial) == (old, old)
    collaborator = host.pid("collaborator")
    site.send(task=aggregator.task(trial.first_model))
    gate = await asyncio.to_thread(open, tmp_path / "gate", "w")  # returns in the middle of the trainer's round

    granted.set()
    later, later_site = await director.next_session(), await aggregator.next_session()
    new = tls.check(now=time.time()).serial
    assert issued[0].serial == new == later.call.peer.serial == later_site.call.peer.serial != old
    assert list(later.hello.running) == [EXPERIMENT]
    # As the real ones do: the older session of one identity is ended.
    session.call.end(ConflictError("superseded by a newer session of envoy north"))
    site.call.end(ConflictError("superseded by a newer session of north: do not connect again"))
    assert [offer.name for offer in (await later.hear("offers")).shards] == ["ward"]
    await later_site.hear("ready")
    later_site.send(task=aggregator.task(trial.first_model))
    gate.close()
    update = await aggregator.next_update()
    assert update.header.round == 1
    assert host.pid("collaborator") == collaborator
    later_site.send(verdict=aggregator.verdict(update))
    finish(later_site)
    assert (await later.hear("status")).state == "finished"
    assert (await host.get("/ready"))["ready"] is True
    [expiry] = re.findall(
        r'certificate_expiry_seconds{identity="spiffe://care/envoy/north"} (.*)', await host.get("/metrics")
    )
    assert float(expiry) == tls.facts().expires_at
    assert "attends no more" not in host.log
    assert director.sessions.empty() and aggregator.sessions.empty()
    child.terminate()
    assert (await wait_for_end(child)).code == 0


async def test_a_refused_renewal_is_said_and_tried_again(director: Any, make_host: Any, pki: Any) -> None:
    tls = pki.issue_due(Role.ENVOY, "north", left_s=30.0)  # so little that it is soon tried again
    asked: asyncio.Queue[tuple[bytes, asyncio.Future[bytes]]] = asyncio.Queue()

    async def renew(request: bytes) -> bytes:
        answer = asyncio.get_running_loop().create_future()
        asked.put_nowait((request, answer))
        return await answer

    director.renew = renew
    host = make_host()
    await host.start()
    session = await director.next_session()
    await session.hear("offers")
    _, answer = await asyncio.wait_for(asked.get(), 30)
    assert (await host.get("/ready"))["ready"] is True
    answer.set_exception(ConflictError("no more certificates today"))

    request, answer = await asyncio.wait_for(asked.get(), 30)
    found = await host.get("/ready")
    assert found["ready"] is False
    assert "in 0.0 days; not renewed: " in found["checks"]["certificate"]
    assert "no more certificates today" in found["checks"]["certificate"]
    assert "certificate not renewed" in host.log
    other = Identity(federation="care", role=Role.ENVOY, name="south")
    answer.set_result(requests.renew(pki.authority, other, request, now=time.time(), lifetime_s=DAY_S).pem)

    request, answer = await asyncio.wait_for(asked.get(), 30)
    assert "envoy/south" in (await host.get("/ready"))["checks"]["certificate"]
    before = tls.facts()
    answer.set_result(requests.renew(pki.authority, before.identity, request, now=time.time(), lifetime_s=DAY_S).pem)
    later = await director.next_session()
    assert later.call.peer.serial == tls.facts().serial != before.serial
    assert (await host.get("/ready"))["ready"] is True


async def test_an_owner_may_renew_by_himself(director: Any, make_host: Any, pki: Any, wait_for_end: Any) -> None:
    pki.issue_due(Role.ENVOY, "north")
    host = make_host(extra="renew = false")
    child = await host.start()
    await (await director.next_session()).hear("offers")
    child.terminate()
    assert (await wait_for_end(child)).code == 0
    assert "certificate not renewed" not in host.log  # nobody asked a director that refuses
