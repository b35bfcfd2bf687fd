"""One site for real: envoy and collaborator processes with their trainers, over mutual TLS.

The other side is scripted: a real server of ours whose director and aggregator say what a test tells them to, the lies
and the cuts included.
"""

from __future__ import annotations

import functools
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from federation.names import Role
from federation.pki.authority import CertificateAuthority
from federation.runtime import children
from federation.v1 import aggregator_pb2, director_pb2

from .envoy_hosts import Attending, EnvoyHost, accepted
from .processes import Site, ended, gone
from .scripted import ScriptedAggregator, ScriptedDirector, serving
from .trials import EXPERIMENT, FEDERATION, Pki, Trial, pack_trial

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


SHARDS = """
import numpy as np
from federation.data.shard import ArrayShard

class Numbers(ArrayShard):
    def __init__(self, examples=8):
        x = np.arange(examples * 3, dtype=np.float32).reshape(examples, 3)
        y = np.zeros(examples, dtype=np.float32)
        super().__init__(train=(x, y), validation=(x[:2], y[:2]), description="numbers")

class Broken:
    def __init__(self):
        raise OSError("the ward's disk is not mounted")
"""


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    authority = CertificateAuthority.create(FEDERATION, tmp_path / "ca", now=time.time())
    return Pki(tmp_path / "identities", authority)


@pytest.fixture
def make_trial(tmp_path: Path) -> Callable[..., Trial]:
    return functools.partial(pack_trial, tmp_path)


@pytest.fixture
def shard_code(tmp_path: Path) -> Path:
    """A folder with the site's own shard factories."""
    folder = tmp_path / "factories"
    folder.mkdir()
    (folder / "ward_shards.py").write_text(SHARDS)
    return folder


@pytest.fixture
async def aggregator_of(pki: Pki) -> AsyncIterator[Callable[[Trial], Any]]:
    async with AsyncExitStack() as stack:

        async def start(trial: Trial) -> ScriptedAggregator:
            aggregator = ScriptedAggregator(trial)
            service = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
            tls = pki.issue(Role.AGGREGATOR, EXPERIMENT)
            await stack.enter_async_context(serving(service, aggregator, tls))
            return aggregator

        yield start


@pytest.fixture
async def director(pki: Pki) -> AsyncIterator[ScriptedDirector]:
    made = ScriptedDirector()
    service = director_pb2.DESCRIPTOR.services_by_name["Director"]
    async with serving(service, made, pki.issue(Role.DIRECTOR, "director")):
        yield made


@pytest.fixture
async def make_site(tmp_path: Path, pki: Pki, shard_code: Path) -> AsyncIterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(trial: Trial, **fields: Any) -> Site:
        sites.append(Site(tmp_path / "site", pki, trial, shard_code, **fields))
        return sites[-1]

    yield make
    for site in sites:
        for child in site.started:
            if child.is_running:
                child.kill()
                await child.wait()


@pytest.fixture
def take_part(aggregator_of: Any, make_site: Any) -> Callable[..., Any]:
    """Return what brings a collaborator to where it is ready for tasks.

    It returns its aggregator, its site, its process and the aggregator's end of its session.
    """

    async def begin(trial: Trial, **fields: Any) -> tuple[Any, Site, children.Child, Any]:
        aggregator, site = await aggregator_of(trial), make_site(trial, **fields)
        child = await site.start(aggregator.address)
        session = await aggregator.next_session()
        await session.hear("ready")
        return aggregator, site, child, session

    return begin


@pytest.fixture
def wait_for_end() -> Any:
    return ended


@pytest.fixture
def until_gone() -> Any:
    return gone


@pytest.fixture
async def make_host(
    tmp_path: Path, pki: Any, director: Any, shard_code: Path
) -> AsyncIterator[Callable[..., EnvoyHost]]:
    hosts = []

    def make(policy: str = 'trust = "director"', shards: str = "", extra: str = "") -> EnvoyHost:
        folder = tmp_path / "host"
        folder.mkdir()
        tls = pki.issue(Role.ENVOY, "north")
        (folder / "envoy.toml").write_text(f"""
federation = "care"
director = "{director.address}"
authority = "{tls.authority}"
certificate = "{tls.certificate}"
key = "{tls.key}"
{extra}
[trainer]
sandbox = "none"
python_path = ["{shard_code}"]

[policy]
{policy}

[[shards]]
name = "ward"
kind = "numbers"
factory = "ward_shards:Numbers"
{shards}
""")
        hosts.append(EnvoyHost(folder))
        return hosts[-1]

    yield make
    for host in hosts:
        for folder in (*host.folder.glob("state/experiments/*/collaborator"), host.folder / "process"):
            child = children.adopt(folder)
            if child is not None:
                child.kill()
                await child.wait()
        for child in host.started:
            await child.wait()


@pytest.fixture
def attend(make_trial: Any, aggregator_of: Any, director: Any, make_host: Any) -> Callable[..., Any]:
    """Return what brings an envoy up and its collaborator of an experiment to where it is ready for tasks."""

    async def begin(train: str = "pass", **settings: str) -> Attending:
        trial = make_trial(train)
        aggregator, host = await aggregator_of(trial), make_host(**settings)
        session, site, child = await accepted(trial, aggregator, director, host)
        return Attending(trial=trial, aggregator=aggregator, host=host, session=session, site=site, child=child)

    return begin
