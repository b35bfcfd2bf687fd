"""A run in MLflow, in a local database unless it is told of a server; needs the extra ``trackers``.

Rules, in order:

1. A folder gets ``mlflow.db`` and ``artifacts``; look at it with ``mlflow server --backend-store-uri
   sqlite:///FOLDER/mlflow.db``. MLflow's older store of plain files takes no new runs.
2. MLflow's settings of this process (tracking URI, active run) stay as they are: an experiment may use MLflow itself.
3. MLflow's own usage reports are off unless ``MLFLOW_DISABLE_TELEMETRY`` says otherwise: tracking a run sends nothing
   but what goes to the server that was named.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.errors import ConfigurationError, StorageError
from federation.tracking.tracker import parameters_of, scalars_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.rounds.history import RoundRecord

_AT_ONCE = 100
"""Parameters, and also metrics, that MLflow takes in one call."""
_STATUS = {"completed": "FINISHED", "interrupted": "KILLED"}


class MlflowTracker:
    """Writes one MLflow run, of the MLflow experiment that has the run's name.

    Args:
        where: folder of a local database (rule 1), or a tracking URI, such as ``http://host:5000``; empty: what
            MLflow's own settings say.
    """

    def __init__(self, where: str = "") -> None:
        self._where = where
        self._client: Any = None
        self._mlflow: Any = None
        self._run = ""

    def start(self, run: Mapping[str, Any]) -> None:
        """See `Tracker.start`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow
            import mlflow.entities
        except ImportError as error:
            raise ConfigurationError("tracker mlflow needs mlflow: pip install 'federation[trackers]'") from error
        self._mlflow = mlflow
        try:
            self._begin(run)
        except (mlflow.MlflowException, OSError) as error:
            raise ConfigurationError(
                f"tracker mlflow cannot use {self._where or 'the place its settings name'}: {error}; "
                "give a folder or a tracking URI, as in mlflow:runs"
            ) from error

    def round(self, record: RoundRecord) -> None:
        """See `Tracker.round`."""
        now = int(1000 * time.time())
        metrics = [
            self._mlflow.entities.Metric(name, value, now, record.round) for name, value in scalars_of(record).items()
        ]
        with self._translated():
            for first in range(0, len(metrics), _AT_ONCE):
                self._client.log_batch(self._run, metrics=metrics[first : first + _AT_ONCE])

    def end(self, outcome: str) -> None:
        """See `Tracker.end`."""
        with self._translated():
            self._client.set_tag(self._run, "outcome", outcome)
            self._client.set_terminated(self._run, _STATUS.get(outcome, "FAILED"))

    def _begin(self, run: Mapping[str, Any]) -> None:
        uri, artifacts = self._place()
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._experiment(str(run.get("name") or "federation"), artifacts)
        self._run = self._client.create_run(experiment, run_name=str(run.get("label") or "") or None).info.run_id
        parameters = [
            self._mlflow.entities.Param(name, str(value)) for name, value in parameters_of(run).items() if value != ""
        ]
        for first in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._run, params=parameters[first : first + _AT_ONCE])

    def _place(self) -> tuple[str | None, str | None]:
        """Return the tracking URI and where artifacts go; None: as MLflow has it."""
        if not self._where or ":" in Path(self._where).name or "://" in self._where:
            return self._where or None, None
        folder = Path(self._where).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifacts))
            except self._mlflow.MlflowException:  # another run may have made it just now
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._mlflow.MlflowException as error:
            raise StorageError(f"tracker mlflow could not write run {self._run}: {error}") from error
