"""Renewal of a certificate by its holder: when it is due, what is accepted as the answer, and how the files change.

Rules, in order:

1. A certificate is due when two thirds of its life are over. Its life begins when it was issued; what the authority
   backdated for clocks that lag does not count.
2. Each attempt makes a new key. The answer counts only if it is for the identity we have, from the authority we
   have, for that key, and still valid.
3. The files change so that whoever reads them, a crash at any moment included, finds a key and a certificate that fit:
   first the new certificate beside the old one (`next_certificate`), then the key is replaced, then the certificate.
   A reader whose certificate does not fit the key takes the next one (`federation.transport.credentials`, rule 5).
4. What fails is said (`Renewal.problem`) and tried again after a growing, spread delay, sooner when the end is near.

How the authority is asked, and what follows from a renewal, is the caller's business. Source: architecture §6.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Never, Protocol

from cryptography.exceptions import InvalidSignature

from federation.errors import ConfigurationError, FederationError, PeerError, StorageError
from federation.pki.certificates import UNREADABLE, load_certificate_pem, parse_certificate
from federation.pki.files import read
from federation.pki.keys import key_pem, load_key_pem, make_key
from federation.pki.requests import make_request
from federation.runtime.clock import pause
from federation.runtime.records import write_atomically
from federation.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

    from federation.pki.certificates import Certificate
    from federation.runtime.clock import Cancellable, Clock

RENEW_AT = 2 / 3
"""Part of its life after which a certificate is renewed: a third is left for whatever goes wrong."""
_FIRST_RETRY_S = 60.0
_MOST_RETRY_S = 3600.0
_LOOK_S = 3600.0
"""A wait for a moment of the wall clock is looked at again this often: the clock may be set, the files replaced."""

_log = get_logger(__name__)


class Files(Protocol):
    """The files of an identity (`federation.transport.credentials.TlsFiles`)."""

    @property
    def authority(self) -> Path:
        """Certificate of the authority."""

    @property
    def certificate(self) -> Path:
        """Our certificate."""

    @property
    def key(self) -> Path:
        """Its key."""

    @property
    def next_certificate(self) -> Path:
        """Our certificate while key and certificate are being replaced."""


def due_at(files: Files) -> float:
    """Return when the certificate is to be renewed, Unix seconds.

    Raises:
        ConfigurationError: it cannot be read.
    """
    certificate = _present(files)
    return certificate.begins_at + (certificate.expires_at - certificate.begins_at) * RENEW_AT


async def renew(files: Files, ask: Callable[[bytes], Awaitable[bytes]], *, now: Callable[[], float]) -> Certificate:
    """Renew the certificate once, and return the new one.

    Args:
        files: where they are; replaced.
        ask: sends a signing request (PKCS #10, DER) to the authority and returns the certificate, PEM.
        now: wall clock, Unix seconds.

    Raises:
        ConfigurationError: the present files cannot be read.
        PeerError: the answer is not a certificate for us.
        StorageError: the files cannot be replaced.
        FederationError: what `ask` raises.
    """
    key = make_key()
    answer = await ask(make_request(key))
    certificate = check_answer(answer, files, key.public_key(), now=now())
    await asyncio.to_thread(install, files, key_pem(key), answer)
    return certificate


def check_answer(pem: bytes, files: Files, public_key: CertificatePublicKeyTypes, *, now: float) -> Certificate:
    """Return the certificate of an answer, if it is one for us (rule 2).

    Args:
        pem: what the authority sent.
        files: present files.
        public_key: key that was asked for.
        now: Unix seconds.

    Raises:
        ConfigurationError: the present files cannot be read.
        PeerError: the answer breaks the rule.
    """
    present = _present(files)
    authority = load_certificate_pem(read(files.authority, "authority"), str(files.authority))
    try:
        certificate = parse_certificate(pem, "the director's reply")
        load_certificate_pem(pem, "the director's reply").verify_directly_issued_by(authority)
    except ConfigurationError as error:
        raise PeerError(str(error)) from error
    except (InvalidSignature, TypeError, *UNREADABLE) as error:  # other signature, other name, other kind of key
        raise PeerError(f"the director's certificate was not issued by the authority in {files.authority}") from error
    if certificate.spiffe != present.spiffe:
        raise PeerError(f"the director certified {certificate.spiffe}, asked was for {present.spiffe}")
    if certificate.public_key != public_key:
        raise PeerError("the director certified another key than the one it was asked for")
    if certificate.expires_at <= now:
        raise PeerError(f"the director's certificate expired {now - certificate.expires_at:.0f} s before it came")
    return certificate


def install(files: Files, key: bytes, certificate: bytes) -> None:
    """Replace key and certificate (rule 3).

    Args:
        files: where they are.
        key: PKCS #8 PEM.
        certificate: PEM, of that key.

    Raises:
        StorageError: the disk refused; the files fit together still.
    """
    write_atomically(files.next_certificate, certificate, mode=0o644)
    write_atomically(files.key, key)
    _switch(files)


def complete(files: Files) -> bool:
    """Finish a replacement that was cut off after the key was replaced; tell whether there was one.

    Raises:
        ConfigurationError: the key cannot be read.
        StorageError: the disk refused.
    """
    if not files.next_certificate.exists():
        return False
    key = load_key_pem(read(files.key, "key"), str(files.key)).public_key()
    following = parse_certificate(read(files.next_certificate, "certificate"), str(files.next_certificate))
    if following.public_key != key or _present(files).public_key == key:
        return False  # cut off earlier: the old pair is whole, and the next renewal overwrites what lies there
    _switch(files)
    return True


def describe_expiry(expires_at: float, now: float) -> str:
    """Say when a certificate expires, for people.

    Args:
        expires_at: end of its validity, Unix seconds; 0 if it cannot be read.
        now: Unix seconds.
    """
    if not expires_at:
        return "cannot be read"
    when = datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"expires at {when}, in {(expires_at - now) / 86400:.1f} days" if expires_at > now else f"expired at {when}"


class Renewal:
    """Keeps one certificate renewed for the life of the process; `run` does it.

    Args:
        files: of the certificate.
        ask: as for `renew`; may wait until there is somebody to ask.
        clock: tells when it is due.
        on_renewed: called after each renewal, when the files are in place.
        rng: spreads retries; nothing secret depends on it.

    Attributes:
        problem: why the last attempt failed; empty if it did not, or none was due.
    """

    def __init__(
        self,
        files: Files,
        ask: Callable[[bytes], Awaitable[bytes]],
        *,
        clock: Clock,
        on_renewed: Callable[[], object],
        rng: random.Random | None = None,
    ) -> None:
        self.problem = ""
        self._files = files
        self._ask = ask
        self._clock = clock
        self._on_renewed = on_renewed
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries
        self._failures = 0

    async def run(self) -> Never:
        """Renew whenever it is due, for ever."""
        while True:
            await self._until_due()
            try:
                complete(self._files)
                certificate = await renew(self._files, self._ask, now=self._clock.now)
            except FederationError as error:
                self.problem = str(error)
                delay_s = self._retry_s()
                _log.warning("certificate not renewed", reason=str(error), again_in_s=round(delay_s))
                await pause(self._clock, delay_s)
                continue
            self.problem, self._failures = "", 0
            _log.info("certificate renewed", serial=f"{certificate.serial:x}", expires_at=certificate.expires_at)
            self._on_renewed()
            # An authority near its own end issues ever shorter ones; they are not chased without a pause.
            await pause(self._clock, _FIRST_RETRY_S)

    def expiry(self) -> float:
        """When the present certificate expires, Unix seconds; 0 if it cannot be read."""
        try:
            return _present(self._files).expires_at
        except ConfigurationError:
            return 0.0

    def trouble(self) -> str | None:
        """What is wrong with the certificate, for people, and when it expires; None if nothing is."""
        now, expires_at = self._clock.now(), self.expiry()
        if self.problem:
            return f"certificate {describe_expiry(expires_at, now)}; not renewed: {self.problem}"
        return None if expires_at > now else f"certificate {describe_expiry(expires_at, now)}"

    async def _until_due(self) -> None:
        reached = asyncio.Event()
        timer: Cancellable | None = None

        def look() -> None:
            nonlocal timer
            left_s = self._due() - self._clock.now()
            if left_s <= 0:
                reached.set()
            else:
                timer = self._clock.timer(min(left_s, _LOOK_S), look)

        look()
        try:
            await reached.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _due(self) -> float:
        try:
            return due_at(self._files)
        except ConfigurationError as error:
            self.problem = str(error)
            return math.inf  # looked at again: whoever replaces the files by hand may be in the middle of it

    def _retry_s(self) -> float:
        delay_s = min(_MOST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        left_s = self.expiry() - self._clock.now()
        if left_s > 0:
            delay_s = min(delay_s, max(left_s / 4, 1.0))
        return delay_s * (0.5 + 0.5 * self._rng.random())


def _present(files: Files) -> Certificate:
    return parse_certificate(read(files.certificate, "certificate"), str(files.certificate))


def _switch(files: Files) -> None:
    try:
        os.replace(files.next_certificate, files.certificate)
    except OSError as error:
        raise StorageError(f"cannot write {files.certificate}: {error.strerror}") from error
