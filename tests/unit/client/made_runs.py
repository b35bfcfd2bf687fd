"""Run folders made up for tests, with known bits, seconds and losses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from federation.names import Epoch, RoundNumber, SiteName
from federation.rounds.history import RoundRecord, SiteOutcome, SiteRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def record(number: int, loss: float | None, **fields: Any) -> RoundRecord:
    """One site sent 10 bytes and fetched 20, at 50 oracle calls; a round took 2 s."""
    metrics = {} if loss is None else {"loss": loss, "accuracy": 1 - loss}
    site = SiteRecord(site=SiteName("north"), outcome=SiteOutcome.COUNTED, oracle_calls=50, peak_memory=7)
    values: dict[str, Any] = {
        "round": RoundNumber(number), "epoch": Epoch(1), "started_at": 1e9, "seconds": 2.0, "sites": (site,),
        "metrics": metrics, "train_metrics": {"loss": 3.0}, "model_digest": "ab", "bytes_up": 10, "bytes_down": 20,
        "update_norm": 0.5, "phase_seconds": {"collect": 1.0},
    }  # fmt: skip
    return RoundRecord(**{**values, **fields})


def make_run(
    folder: Path, losses: Sequence[float | None], *, seed: int = 0, plan: dict[str, Any] | None = None, **head: Any
) -> Path:
    folder.mkdir(parents=True)
    document = {
        "format": 1, "kind": "simulated", "name": "digits", "seed": seed, "sites": ["north"], "partition": "iid",
        "spec": {"name": "digits", "plan": {"algorithm": "fedavg", "seed": seed, **(plan or {})}},
        "outcome": "completed", "label": "", **head,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(document))
    lines = [json.dumps(record(number, loss).to_json()) + "\n" for number, loss in enumerate(losses, start=1)]
    (folder / "history.jsonl").write_text("".join(lines))
    return folder
