"""Which artifacts an experiment has; their bytes are in the artifact store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from director.store import tables
from director.store.records import ArtifactRecord
from federation.errors import NotFoundError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def record(session: Session, experiment: str, artifact: ArtifactRecord, at: float) -> None:
    """Note an artifact that lies in the artifact store; one of the same name is replaced."""
    session.merge(
        tables.Artifact(
            experiment=experiment,
            name=artifact.name,
            bytes=artifact.bytes,
            digest=artifact.digest,
            round=artifact.round,
            stored_at=at,
        )
    )


def of(session: Session, experiment: str) -> list[ArtifactRecord]:
    """Return the experiment's artifacts, by name."""
    query = select(tables.Artifact).where(tables.Artifact.experiment == experiment).order_by(tables.Artifact.name)
    return [_artifact(row) for row in session.scalars(query)]


def get(session: Session, experiment: str, name: str) -> ArtifactRecord:
    """Return one artifact.

    Raises:
        NotFoundError: the experiment has none of this name; the text lists those it has.
    """
    row = session.get(tables.Artifact, (experiment, name))
    if row is None:
        there = ", ".join(artifact.name for artifact in of(session, experiment)) or "none yet"
        raise NotFoundError(f"experiment {experiment} has no artifact {name[:80]!r}; it has: {there}")
    return _artifact(row)


def _artifact(row: tables.Artifact) -> ArtifactRecord:
    return ArtifactRecord(name=row.name, bytes=row.bytes, digest=row.digest, round=row.round)
