"""How a site's owner's settings become a trainer: the same for collaborators and for an envoy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from federation.confinement.handle import TrainerSettings
from federation.confinement.sandbox import SandboxMode
from federation.runtime.children import Limits
from federation.v1 import trainer_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from federation.collaborator.config import ShardSettings, TrainerOptions


def shard_configs(shards: Iterable[ShardSettings]) -> list[trainer_pb2.ShardConfig]:
    """Return shards as a trainer is told of them."""
    return [
        trainer_pb2.ShardConfig(
            name=shard.name, kind=shard.kind, factory=shard.factory, options_json=json.dumps(shard.options)
        )
        for shard in shards
    ]


def trainer_settings(
    options: TrainerOptions,
    shards: Sequence[ShardSettings],
    *,
    name: str,
    folder: Path,
    log: Path,
    workspace: Path,
    exchange: Path | None = None,
    bundle: Path | None = None,
    hidden: Iterable[Path] = (),
    threads: int = 1,
) -> TrainerSettings:
    """Return how to start a trainer that may read these shards, and nothing else of the site.

    Args:
        options: what the site's owner set.
        shards: shards it is to load; their paths are what it can read.
        name: for logs.
        folder: where its identity lies, unseen by it.
        log: file for its output, unseen by it.
        workspace: its own folder.
        exchange: folder shared with its owner; None to describe shards only.
        bundle: unpacked experiment; None to describe shards only.
        hidden: keys and state it must never see.
        threads: CPU threads, from the plan.
    """
    return TrainerSettings(
        name=name,
        folder=folder.absolute(),
        log=log.absolute(),
        workspace=workspace.absolute(),
        exchange=exchange.absolute() if exchange is not None else None,
        bundle=bundle.absolute() if bundle is not None else None,
        readable=tuple(dict.fromkeys(path.absolute() for shard in shards for path in shard.paths)),
        hidden=tuple(path.absolute() for path in hidden),
        python_path=tuple(path.absolute() for path in options.python_path),
        interpreter=options.interpreter,
        sandbox=SandboxMode(options.sandbox),
        limits=Limits(memory_bytes=options.memory_bytes, open_files=options.open_files, processes=options.processes),
        threads=threads,
    )
