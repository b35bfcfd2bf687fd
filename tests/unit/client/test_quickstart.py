"""What the quickstart may remove: a run of its own, and nothing of anybody else's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from federation.client.quickstart import clear_folder
from federation.errors import ConfigurationError
from federation.names import FederationName
from federation.pki.authority import CertificateAuthority

if TYPE_CHECKING:
    from pathlib import Path


def test_refuses_a_folder_with_the_authority_of_a_real_federation(tmp_path: Path) -> None:
    CertificateAuthority.create(FederationName("demo"), tmp_path / "ca", now=time.time())
    key = (tmp_path / "ca" / "ca.key").read_bytes()
    with pytest.raises(ConfigurationError, match="no earlier quickstart"):
        clear_folder(tmp_path)
    assert (tmp_path / "ca" / "ca.key").read_bytes() == key


def test_removes_what_an_earlier_run_left_and_keeps_what_somebody_put_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    clear_folder(folder)
    CertificateAuthority.create(FederationName("hospitals"), folder / "ca", now=time.time())
    (folder / "plot.png").write_bytes(b"a plot")
    (folder / "notes.txt").write_text("mine")
    clear_folder(folder)
    assert not (folder / "ca").exists() and not (folder / "plot.png").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    clear_folder(folder)  # and it is still known for what it is
