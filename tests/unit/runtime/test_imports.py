"""What importing the ground costs, and on which machines it works; asked of a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = "import sys; from importlib import import_module as load; [load(m) for m in {modules}]; print(*sys.modules)"
GROUND = [
    *(
        f"federation.runtime.{m}"
        for m in ("children", "exec_stub", "framing", "orphans", "settings", "shutdown", "tasks")
    ),
    *(f"federation.telemetry.{m}" for m in ("http", "logs", "metrics")),
    "federation.confinement.handle",
]


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("heavy", ["torch", "grpc", "aiohttp", "sqlalchemy"])
def test_the_ground_does_not_load(heavy: str) -> None:
    assert heavy not in _run(LOADED.format(modules=GROUND)).split()


@pytest.mark.parametrize("role", ["aggregator", "collaborator", "trainer"])
def test_a_process_starts_without_the_methods_rules_and_codecs_that_its_plan_may_not_name(role: str) -> None:
    loaded = set(_run(LOADED.format(modules=[f"federation.{role}.process"])).split())
    ours = {f"federation.{name}" for name in ("algorithms.scaffold", "aggregation.krum", "compression.eden")}
    assert not loaded & {*ours, "torch"}


def test_the_ground_can_be_imported_where_linux_only_things_are_missing() -> None:
    missing = "import asyncio, os, sys; sys.modules['resource'] = sys.modules['fcntl'] = None; del os.pidfd_open\n"
    assert "federation.runtime.children" in _run(missing + LOADED.format(modules=GROUND)).split()


PORTABLE = (
    "federation.client.command",
    "federation.client.federation",
    "federation.client.report",
    "federation.simulation",
)


@pytest.mark.parametrize("module", PORTABLE)
def test_what_a_laptop_runs_can_be_imported_where_linux_only_things_are_missing(module: str) -> None:
    missing = (
        "import asyncio, os, sys, subprocess\n"
        "for name in ('resource', 'fcntl', 'grp', 'pwd'): sys.modules[name] = None\n"
        "for name in ('pidfd_open', 'preadv', 'pwritev'): delattr(os, name)\n"
    )
    assert module in _run(missing + LOADED.format(modules=[module])).split()
