"""A run in MLflow, in a local folder unless it is told of a server; needs the extra ``trackers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from federation.rounds.history import RoundRecord


class MlflowTracker:
    """Writes one MLflow run.

    Args:
        uri: tracking URI, such as a folder; empty: what MLflow's own settings say.
    """

    def __init__(self, uri: str = "") -> None:
        self._uri = uri
        self._mlflow: Any = None

    def start(self, run: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        try:
            import mlflow
        except ImportError as error:
            raise ConfigurationError("tracker mlflow needs mlflow: pip install 'federation[trackers]'") from error
        self._mlflow = mlflow
        if self._uri:
            mlflow.set_tracking_uri(self._uri)
        mlflow.set_experiment(str(run.get("name") or "federation"))
        mlflow.start_run()
        mlflow.log_params(parameters_of(run))

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        self._mlflow.log_metrics(scalars_of(record), step=record.round)

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        self._mlflow.set_tag("outcome", outcome)
        self._mlflow.end_run("FINISHED" if outcome == "completed" else "FAILED")
