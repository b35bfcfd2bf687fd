"""Telling the parent: what is sent, and that nobody need listen."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from federation.runtime.notify import notify_ready, notify_stopping

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return tmp_path / "notify"


def test_readiness_carries_facts_and_stopping_none(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        notify_ready(address="127.0.0.1:1")
        notify_stopping()
        assert listener.recv(1000) == b"READY=1\nX_ADDRESS=127.0.0.1:1"
        assert listener.recv(1000) == b"STOPPING=1"


def test_a_listener_that_is_gone_harms_nobody(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
    notify_ready()
    place.unlink()
    notify_ready()
    notify_stopping()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        notify_stopping()
        assert listener.recv(1000) == b"STOPPING=1"  # and nothing that was said to nobody


def test_a_listener_that_does_not_read_holds_nobody_up(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        for _ in range(1000):
            notify_ready()
        assert listener.recv(1000) == b"READY=1"
