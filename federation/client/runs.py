"""Run folders: what `compare`, `sweep` and the trackers' readers find of a run, simulated or federated alike.

A run folder holds

- ``run.json``: one object, `RunHead`'s fields; a reader skips keys it does not know.
- ``history.jsonl``: one `RoundRecord` as JSON a line, appended after each commit; a torn last line is left out.
- models, checkpoints and figures, which nothing here reads.

``federation simulate --out`` writes it as it runs, ``federation download EXPERIMENT --run`` after the fact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.client.saving import writing
from federation.errors import ConfigurationError, ConflictError, NotFoundError
from federation.names import Epoch, RoundNumber, SiteName
from federation.rounds.history import RoundRecord, SiteOutcome, SiteRecord
from federation.storage.ownership import owned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from federation.client.views import ExperimentDetails, Round

FORMAT = 1
HEAD_FILE = "run.json"
HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, read.

    Attributes:
        folder: where it lies.
        kind: ``simulated`` or ``federated``.
        name: of its experiment.
        label: what its author called it, for comparisons; empty: made from its plan.
        seed: of its plan.
        sites: how many sites it had.
        partition: how the data was divided; empty for a federated run.
        plan: its plan as JSON values.
        conditions: what else decided its numbers: data, state of the code, script, attack, what took how long; empty
            for a federated run.
        outcome: how it ended, such as ``completed``; empty while it has not.
        records: its committed rounds, in order.
    """

    folder: Path
    kind: str
    name: str
    label: str
    seed: int
    sites: int
    partition: str
    plan: Mapping[str, Any]
    conditions: Mapping[str, Any]
    outcome: str
    records: tuple[RoundRecord, ...] = field(repr=False)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        NotFoundError: it is no run folder.
        ConfigurationError: it is of a format this release does not know, or damaged.
    """
    try:
        head = json.loads((folder / HEAD_FILE).read_text(encoding="utf-8"))
        lines = (folder / HISTORY_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"{folder} is not a run folder: it has no {Path(error.filename or '').name}; "
            f"make one with `federation simulate DIR --out {folder}`"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{folder / HEAD_FILE} is not JSON: {error}; run it again with --fresh") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else type(head).__name__
        raise ConfigurationError(f"{folder / HEAD_FILE} is of format {found!r}, this release reads {FORMAT}")
    return Run(
        folder=folder,
        kind=str(head.get("kind", "")),
        name=str(head.get("name", folder.name)),
        label=str(head.get("label") or ""),
        seed=int(head.get("seed") or 0),
        sites=_count(head.get("sites")),
        partition=str(head.get("partition") or ""),
        plan=_plan_of(head.get("spec")),
        conditions=_conditions_of(head),
        outcome=str(head.get("outcome") or ""),
        records=tuple(_records(folder / HISTORY_FILE, lines)),
    )


def is_finished(folder: Path) -> bool:
    """Tell whether a folder holds a run that has ended well, so that a sweep need not run it again."""
    return _head_of(folder).get("outcome") == "completed"


def code_of(folder: Path) -> str:
    """Return the digest of the code a run was made with; empty if that was not written down."""
    return str(_conditions_of(_head_of(folder)).get("code") or "")


def _head_of(folder: Path) -> dict[str, Any]:
    try:
        head = json.loads((folder / HEAD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Read every run folder among `paths` and, where one is a folder of runs, those inside it, in name order.

    Raises:
        NotFoundError: a path is neither.
        ConfigurationError: a run cannot be read.
    """
    runs: list[Run] = []
    for path in paths:
        inner = sorted(child.parent for child in path.glob(f"*/{HEAD_FILE}")) if path.is_dir() else []
        if (path / HEAD_FILE).exists() or not inner:
            runs.append(read_run(path))
        else:
            runs += [read_run(folder) for folder in inner]
    return runs


@contextlib.contextmanager
def federated_run(details: ExperimentDetails, folder: Path) -> Iterator[None]:
    """Have a run folder to oneself in which lies what the director tells of an experiment, as of a simulated one.

    Args:
        details: of the experiment.
        folder: made if missing; what an earlier call wrote of the same experiment is written anew.

    Raises:
        ConflictError: it has another run, or somebody runs in it now.
        StorageError: it cannot be written.
    """
    experiment = details.summary.experiment
    with writing(folder), owned(folder, command=_download_of(experiment)):
        _check_same(folder, experiment)
        _write(details, folder)
        yield


def _download_of(experiment: str) -> str:
    return f"federation download {experiment} --run"


def _check_same(folder: Path, experiment: str) -> None:
    """Refuse a folder whose run is not of this experiment: its models and its history would be of two."""
    try:
        head = json.loads((folder / HEAD_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        head = None
    if not isinstance(head, dict) or head.get("command") != _download_of(experiment):
        name = head.get("name") if isinstance(head, dict) else None
        raise ConflictError(
            f"{folder} has another run already{f' ({name})' if name else ''}: it is not overwritten. Choose another "
            "folder with --output, or move that one away"
        )


def _write(details: ExperimentDetails, folder: Path) -> None:
    plan = dict(details.plan)
    summary = details.summary
    head = {
        "format": FORMAT, "kind": "federated", "name": summary.name, "spec": plan, "label": "",
        "seed": _plan_of(plan).get("seed", 0), "sites": len(summary.sites), "partition": "", "data": "",
        "command": _download_of(summary.experiment), "software": "", "outcome": summary.state,
    }  # fmt: skip
    lines = "".join(json.dumps(_record_of(entry).to_json()) + "\n" for entry in details.rounds)
    (folder / HISTORY_FILE).write_text(lines, encoding="utf-8")
    whole = folder / f".{HEAD_FILE}.tmp"
    whole.write_text(json.dumps(head, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    whole.replace(folder / HEAD_FILE)  # one that is torn would be taken for another run's


def _records(path: Path, lines: list[str]) -> Iterable[RoundRecord]:
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n") and number == len(lines):
            return  # torn by a crash: that round was not committed
        try:
            yield RoundRecord.from_json(json.loads(line))
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}; run it again with --fresh") from error


def _plan_of(spec: object) -> Mapping[str, Any]:
    """Return the plan of a spec; what the director shows as a plan may be either."""
    if isinstance(spec, str):
        spec = json.loads(spec)
    if not isinstance(spec, dict):
        return {}
    inner = spec.get("plan", spec)
    return inner if isinstance(inner, dict) else {}


def _conditions_of(head: Mapping[str, Any]) -> dict[str, Any]:
    given = head.get("conditions")
    hostile = head.get("hostile")
    told = {"data": head.get("data"), "attack": head.get("attack"), "hostile": " ".join(map(str, hostile or ()))}
    return {name: value for name, value in told.items() if value} | (given if isinstance(given, dict) else {})


def _count(sites: object) -> int:
    if isinstance(sites, list):
        return len(sites)
    return int(sites) if isinstance(sites, int) else 0


def _record_of(entry: Round) -> RoundRecord:
    known = {found.name for found in dataclasses.fields(SiteRecord)} - {"site", "outcome"}
    sites = [
        SiteRecord(
            site=SiteName(part.site),
            outcome=SiteOutcome(part.outcome),
            **{name: value for name, value in dataclasses.asdict(part).items() if name in known},
        )
        for part in entry.contributions
    ]
    values = dataclasses.asdict(entry)
    shared = {found.name for found in dataclasses.fields(RoundRecord)} - {"round", "epoch", "sites"}
    return RoundRecord(
        round=RoundNumber(entry.round),
        epoch=Epoch(entry.epoch),
        sites=tuple(sites),
        **{name: value for name, value in values.items() if name in shared},
    )
