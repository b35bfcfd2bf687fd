"""What every test may rely on: tests that need what this machine lacks skip loudly, and fail in CI."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib.util
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from federation.confinement.sandbox import Sandbox, SandboxMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CI = os.environ.get("CI") == "true"
settings.register_profile("unhurried", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("unhurried")


@functools.cache
def _sandbox() -> Sandbox:
    return Sandbox.choose(SandboxMode.AUTO)


def _missing(marker: str) -> str | None:
    """Return why tests with `marker` cannot run here, or None if they can."""
    if marker == "needs_bubblewrap" and not _sandbox().is_confined:
        return f"confinement is NOT TESTED: {_sandbox().why_not}; run tests/install_programs.sh"
    if marker == "needs_torch" and importlib.util.find_spec("torch") is None:
        return "torch is NOT INSTALLED, so training is NOT TESTED: pip install 'federation[torch]'"
    return None


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_cuda") is not None and not _has_cuda():
        pytest.skip("CUDA is NOT TESTED: torch sees no GPU here")  # also in CI, which has none
    for marker in ("needs_bubblewrap", "needs_torch"):
        if item.get_closest_marker(marker) is None:
            continue
        reason = _missing(marker)
        if reason is None:
            continue
        if _CI:
            pytest.fail(f"in CI nothing may be skipped: {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture
def files_of_at_most() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Let no file of this process grow beyond so many bytes: a quota, which a disk's free bytes do not show."""
    import resource

    @contextlib.contextmanager
    def limit(nbytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def on_unknown_curve() -> Callable[[bytes], bytes]:
    """Make of a P-256 key, request or certificate, PEM or DER, one on a curve that no library has heard of."""
    p256, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")

    def change(encoded: bytes) -> bytes:
        if not encoded.startswith(b"-----"):
            assert p256 in encoded
            return encoded.replace(p256, unknown)
        begin, *body, end = encoded.splitlines()
        return b"\n".join((begin, base64.b64encode(change(base64.b64decode(b"".join(body)))), end)) + b"\n"

    return change
