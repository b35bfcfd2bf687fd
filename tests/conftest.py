"""What every test may rely on: tests that need what this machine lacks skip loudly, and fail in CI."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

_CI = os.environ.get("CI") == "true"


def _missing(marker: str) -> str | None:
    """Return why tests with `marker` cannot run here, or None if they can."""
    if marker == "needs_bubblewrap" and shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is NOT INSTALLED, so confinement is NOT TESTED: run tests/install_programs.sh"
    if marker == "needs_torch" and importlib.util.find_spec("torch") is None:
        return "torch is NOT INSTALLED, so training is NOT TESTED: pip install 'federation[torch]'"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("needs_bubblewrap", "needs_torch"):
        if item.get_closest_marker(marker) is None:
            continue
        reason = _missing(marker)
        if reason is None:
            continue
        if _CI:
            pytest.fail(f"in CI nothing may be skipped: {reason}", pytrace=False)
        pytest.skip(reason)
