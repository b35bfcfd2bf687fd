"""Ray actors as workers: one local Ray for all, and stopped after it."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from federation.errors import ConfigurationError, PlanError
from federation.simulation import simulate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
def test_actors_give_the_same_bits_and_a_lost_one_is_replaced(
    source: Path, die_once: Callable[[Path], None], tmp_path: Path
) -> None:
    import ray

    arguments = {"sites": 4, "sample": 3}
    alone = simulate(source, **arguments)
    die_once(tmp_path / "died")
    together = simulate(source, **arguments, workers=2, executor="ray", folder=tmp_path / "run")
    assert (tmp_path / "died").exists()
    assert [record.model_digest for record in together.records] == [record.model_digest for record in alone.records]
    assert together.arrays["w"].tobytes() == alone.arrays["w"].tobytes()
    assert sorted(path.name for path in (tmp_path / "run" / "state").iterdir()) == [f"site-{n:03d}" for n in range(4)]
    assert not ray.is_initialized()


def test_without_ray_the_executor_says_what_to_install(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'federation\[ray\]'"):
        simulate(source, sites=2, workers=2, executor="ray")


def test_an_address_goes_with_ray_only(source: Path) -> None:
    with pytest.raises(PlanError, match="goes with executor ray"):
        simulate(source, sites=2, workers=2, ray_address="auto")


def test_an_address_where_nobody_listens_is_refused_at_once(source: Path) -> None:
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{kept.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=r"Ray cannot be reached at '127\.0\.0\.1:"):
            simulate(source, sites=2, workers=2, executor="ray", ray_address=address)
