from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, PeerError, StorageError, TransportError
from federation.names import FederationName, Identity, Role
from federation.pki import renewal
from federation.pki.authority import DAY_S, CertificateAuthority, issue_identity
from federation.pki.keys import key_pem, make_key
from federation.pki.renewal import Renewal, complete, due_at, install
from federation.pki.requests import make_request, read_request
from federation.testing.clock import FakeClock
from federation.transport.credentials import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_800_000_000.0
NORTH = Identity(federation=FederationName("heart"), role=Role.ENVOY, name="north")
LIFETIME_S = 30 * DAY_S


class Authority:
    """A director's side of renewal, and what may go wrong with it."""

    def __init__(self, authority: CertificateAuthority, clock: FakeClock) -> None:
        self.authority = authority
        self.clock = clock
        self.lifetime_s = LIFETIME_S
        self.identity = NORTH
        self.asked = 0
        self.error: Exception | None = None

    async def __call__(self, request: bytes) -> bytes:
        self.asked += 1
        if self.error is not None:
            raise self.error
        key = read_request(request)
        return self.authority.issue(self.identity, key, now=self.clock.now(), lifetime_s=self.lifetime_s).pem


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now=NOW)


@pytest.fixture
def authority(tmp_path: Path, clock: FakeClock) -> Authority:
    return Authority(CertificateAuthority.create(NORTH.federation, tmp_path / "ca", now=NOW), clock)


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> TlsFiles:
    issue_identity(authority.authority, NORTH, tmp_path / "north", now=NOW, lifetime_s=LIFETIME_S)
    return TlsFiles.in_folder(tmp_path / "north")


async def until(condition: Callable[[], object]) -> None:
    """Let what is ready run, threads included, until something holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)


class Running:
    """A renewal that runs, and how often it renewed."""

    def __init__(self, files: TlsFiles, authority: Authority, clock: FakeClock) -> None:
        self.renewed = 0
        self.renewal = Renewal(files, authority, clock=clock, on_renewed=self._count)
        self.task = asyncio.create_task(self.renewal.run())

    def _count(self) -> None:
        self.renewed += 1

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def test_a_certificate_is_due_after_two_thirds_of_its_life_however_it_was_backdated(files: TlsFiles) -> None:
    assert due_at(files) == pytest.approx(NOW + 20 * DAY_S, abs=2)


async def test_it_is_renewed_when_due_and_not_before(files: TlsFiles, authority: Authority, clock: FakeClock) -> None:
    first = files.facts()
    running = Running(files, authority, clock)
    await until(lambda: clock.waiting)
    clock.advance(20 * DAY_S - 10)
    await until(lambda: clock.waiting)
    assert authority.asked == 0
    clock.advance(20)
    await until(lambda: running.renewed)
    second = files.check(now=clock.now())
    assert second.identity == first.identity
    assert second.serial != first.serial
    assert second.expires_at == pytest.approx(clock.now() + LIFETIME_S, abs=2)
    assert not files.next_certificate.exists()
    assert files.key.stat().st_mode & 0o777 == 0o600

    await until(lambda: clock.waiting)  # the pause after a renewal, then the next wait
    clock.advance(60)
    await until(lambda: clock.waiting)
    clock.advance(20 * DAY_S + 60)
    await until(lambda: running.renewed == 2)
    await running.end()
    assert clock.waiting == 0


async def test_a_wall_clock_that_was_set_is_noticed(files: TlsFiles, authority: Authority, clock: FakeClock) -> None:
    running = Running(files, authority, clock)
    await until(lambda: clock.waiting)
    clock.jump(21 * DAY_S)
    assert authority.asked == 0
    clock.advance(3600)
    await until(lambda: running.renewed)
    assert authority.asked == 1
    await running.end()


async def test_files_replaced_by_hand_are_not_renewed_before_their_own_time(
    files: TlsFiles, authority: Authority, clock: FakeClock
) -> None:
    running = Running(files, authority, clock)
    await until(lambda: clock.waiting)
    clock.advance(19 * DAY_S)
    issue_identity(authority.authority, NORTH, files.key.parent, now=clock.now(), lifetime_s=90 * DAY_S, force=True)
    clock.advance(59 * DAY_S)
    await until(lambda: clock.waiting)
    assert authority.asked == 0
    clock.advance(2 * DAY_S)
    await until(lambda: running.renewed)
    await running.end()


async def test_a_refusal_is_said_and_tried_again_after_growing_delays(
    files: TlsFiles, authority: Authority, clock: FakeClock
) -> None:
    authority.error = TransportError("the director is gone")
    running = Running(files, authority, clock)
    await until(lambda: clock.waiting)
    clock.advance(20 * DAY_S + 10)
    gaps = []
    for attempt in range(1, 9):
        await until(lambda attempt=attempt: authority.asked == attempt and clock.waiting)
        assert running.renewal.problem == "the director is gone"
        trouble = running.renewal.trouble()
        assert trouble is not None
        assert "days; not renewed: the director is gone" in trouble
        began = clock.monotonic()
        while authority.asked == attempt:
            clock.advance(10)
            for _ in range(8):  # what waits has as many turns as it needs to be at its next call
                await asyncio.sleep(0)
        gaps.append(clock.monotonic() - began)
    assert gaps[0] <= 70
    assert 1800 <= gaps[-1] <= 3620
    assert running.renewal.expiry() == files.facts().expires_at
    authority.error = None
    await until(lambda: clock.waiting)
    clock.advance(3600)
    await until(lambda: running.renewed)
    assert running.renewal.trouble() is None
    await running.end()


async def test_near_the_end_it_is_tried_more_often(files: TlsFiles, authority: Authority, clock: FakeClock) -> None:
    authority.error = TransportError("the director is gone")
    clock.advance(LIFETIME_S - 60)
    running = Running(files, authority, clock)
    await until(lambda: authority.asked == 1 and clock.waiting)
    clock.advance(15)
    await until(lambda: authority.asked == 2)
    assert running.renewed == 0 and running.renewal.problem == "the director is gone"
    await running.end()


async def test_an_authority_near_its_end_is_not_asked_without_a_pause(
    files: TlsFiles, authority: Authority, clock: FakeClock
) -> None:
    authority.lifetime_s = 3.0
    clock.advance(20 * DAY_S)
    running = Running(files, authority, clock)
    await until(lambda: running.renewed and clock.waiting)
    clock.advance(30)
    await until(lambda: clock.waiting)
    assert authority.asked == 1
    await running.end()


async def ask_and_renew(files: TlsFiles, authority: Authority) -> None:
    before = [path.read_bytes() for path in (files.certificate, files.key)]
    try:
        await renewal.renew(files, authority, now=authority.clock.now)
    except PeerError:
        assert [path.read_bytes() for path in (files.certificate, files.key)] == before
        raise


async def test_an_answer_for_somebody_else_is_refused(files: TlsFiles, authority: Authority) -> None:
    authority.identity = Identity(federation=NORTH.federation, role=Role.ENVOY, name="south")
    with pytest.raises(PeerError, match="envoy/south"):
        await ask_and_renew(files, authority)


async def test_an_answer_of_another_authority_is_refused(files: TlsFiles, authority: Authority, tmp_path: Path) -> None:
    authority.authority = CertificateAuthority.create(NORTH.federation, tmp_path / "other", now=NOW)
    with pytest.raises(PeerError, match="not issued by the authority"):
        await ask_and_renew(files, authority)


async def test_an_answer_for_another_key_is_refused(files: TlsFiles, authority: Authority) -> None:
    async def swap(_: bytes) -> bytes:
        return await authority(make_request(make_key()))

    with pytest.raises(PeerError, match="another key"):
        await renewal.renew(files, swap, now=authority.clock.now)


async def test_an_answer_that_has_expired_is_refused(files: TlsFiles, authority: Authority) -> None:
    with pytest.raises(PeerError, match="expired"):
        await renewal.renew(files, authority, now=lambda: NOW + 2 * LIFETIME_S)


async def test_an_answer_that_is_no_certificate_is_refused(files: TlsFiles, authority: Authority) -> None:
    async def babble(_: bytes) -> bytes:
        return b"-----BEGIN CERTIFICATE-----\n"

    with pytest.raises(PeerError, match="not a certificate"):
        await renewal.renew(files, babble, now=authority.clock.now)


async def test_an_answer_for_a_key_on_an_unknown_curve_is_refused(
    files: TlsFiles, authority: Authority, on_unknown_curve: Callable[[bytes], bytes]
) -> None:
    async def answer(request: bytes) -> bytes:
        return on_unknown_curve(await authority(request))

    with pytest.raises(PeerError, match="director's reply certifies a key of a kind unknown here"):
        await renewal.renew(files, answer, now=authority.clock.now)


async def test_an_authority_file_that_cannot_be_read_is_named(
    files: TlsFiles, authority: Authority, on_unknown_curve: Callable[[bytes], bytes]
) -> None:
    files.authority.write_bytes(on_unknown_curve(files.authority.read_bytes()))
    with pytest.raises(ConfigurationError, match=r"ca\.pem certifies a key of a kind unknown here"):
        await renewal.renew(files, authority, now=authority.clock.now)
    files.authority.write_text("rubbish")
    with pytest.raises(ConfigurationError, match=r"ca\.pem is not a certificate"):
        await renewal.renew(files, authority, now=authority.clock.now)


def crash_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many renames happen, and no more, as a crash would."""
    rename, done = os.replace, 0

    def replace(*paths: object) -> None:
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        rename(*paths)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_crash_at_any_moment_leaves_a_pair_that_fits(
    steps: int, files: TlsFiles, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = files.facts().serial
    key = make_key()
    issued = authority.authority.issue(NORTH, key.public_key(), now=NOW, lifetime_s=LIFETIME_S)
    with monkeypatch.context() as patch:
        crash_after(steps, patch)
        if steps < 3:
            with pytest.raises(KeyboardInterrupt):
                install(files, key_pem(key), issued.pem)
        else:
            install(files, key_pem(key), issued.pem)
    expected = issued.serial if steps >= 2 else old
    assert files.check(now=NOW).serial == expected
    assert complete(files) is (steps == 2)
    assert files.check(now=NOW).serial == files.facts().serial == expected
    assert complete(files) is False

    later = make_key()
    again = authority.authority.issue(NORTH, later.public_key(), now=NOW, lifetime_s=LIFETIME_S)
    install(files, key_pem(later), again.pem)
    assert files.check(now=NOW).serial == again.serial


def test_files_that_do_not_fit_are_refused_whatever_lies_beside_them(files: TlsFiles, authority: Authority) -> None:
    other = authority.authority.issue(NORTH, make_key().public_key(), now=NOW, lifetime_s=LIFETIME_S)
    files.next_certificate.write_bytes(other.pem)
    files.key.write_bytes(key_pem(make_key()))
    with pytest.raises(ConfigurationError, match="does not belong"):
        files.load()


def test_a_folder_that_cannot_be_written_is_an_error_and_changes_nothing(files: TlsFiles, tmp_path: Path) -> None:
    nowhere = TlsFiles(authority=files.authority, certificate=tmp_path / "no" / "cert.pem", key=files.key)
    before = files.key.read_bytes()
    with pytest.raises(StorageError):
        install(nowhere, b"key", b"certificate")
    assert files.key.read_bytes() == before
