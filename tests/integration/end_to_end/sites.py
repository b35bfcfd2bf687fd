"""Sites of a federation of processes: what they offer, and where their rows come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from federation.client.local import LocalSite

HERE = Path(__file__).parent
EXAMPLES = {
    "north": (24, 1),
    "south": (40, 2),
    "west": (16, 3),
    "east": (32, 4),
    "centre": (28, 5),
}
"""Training examples and seed of each site."""


def site(name: str, gates: Path, *kinds: str, **settings: Any) -> LocalSite:
    """Return a site that offers its rows under each of `kinds`.

    ``classes`` gives classes instead, and ``poisoned`` gives them the wrong way round and calls them ``classes`` too.
    """
    examples, seed = EXAMPLES[name]
    shards = [_shard(kind, gates, {"examples": examples, "seed": seed}) for kind in kinds or ("rows",)]
    trainer = {"python_path": [HERE / "site"], **settings.pop("trainer", {})}
    return LocalSite(name=name, shards=shards, settings={"trainer": trainer, **settings})


def _shard(kind: str, gates: Path, options: dict[str, Any]) -> dict[str, Any]:
    if kind == "poisoned":
        factory = "federation.testing.poisoned:PoisonedShard"
        options = {"attack": "label_flip", "base": "rows:Classes", "options": options, "classes": 2}
        return {"name": "classes", "kind": "classes", "factory": factory, "options": options, "paths": [gates]}
    factory = "rows:Classes" if kind == "classes" else "rows:Rows"
    return {"name": kind, "kind": kind, "factory": factory, "options": options, "paths": [gates]}


def load_module(path: Path) -> Any:
    """Import a file that is no package's."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
