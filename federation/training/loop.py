"""One site's work between files, as a trainer is asked for it: the file shell around `federation.training.work`."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from federation.errors import StorageError
from federation.training.exchange import BUFFERS, DELTA, MODEL, OPTIMIZER
from federation.training.files import FileExchange
from federation.training.kept_file import KeptFile
from federation.training.resident import Resident, WrongModelError
from federation.training.results import MetricsError, NonFiniteMetricError, Trained, Worked
from federation.training.state import StateStore
from federation.training.work import SiteWork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from federation.data.local import LocalData
    from federation.names import PayloadName, SiteName
    from federation.plan import ExperimentSpec
    from federation.training.exchange import Buffer
    from federation.training.experiment import Experiment

__all__ = ["LocalWork", "MetricsError", "NonFiniteMetricError", "Trained", "Worked", "WrongModelError"]


class LocalWork:
    """An experiment at one site, loaded once and warm for all rounds.

    Args:
        experiment: as loaded from the bundle.
        spec: the signed spec; its plan holds, whatever `experiment` says here.
        site: name of this site.
        data: the site's data.
        workspace: folder for state that outlives a round.
        base: flat buffer of the LOCAL tensors as submitted; None if there are none.

    Raises:
        PlanError: the experiment does not make the model of the spec.
        StorageError: a file cannot be read.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        spec: ExperimentSpec,
        site: SiteName,
        data: LocalData,
        workspace: Path,
        base: Path | None,
    ) -> None:
        self._schema = spec.schema_
        self._kept = KeptFile()
        resident = Resident(experiment=experiment, spec=spec, base=_read_base(base))
        self._work = SiteWork(resident, site=site, data=data, state=StateStore(workspace))

    def train(
        self,
        *,
        number: int,
        model: Path,
        delta: Path,
        buffers: Path | None,
        attempt: int = 1,
        optimizer_in: Path | None = None,
        optimizer_out: Path | None = None,
        inputs: Mapping[PayloadName, Path] | None = None,
        outputs: Mapping[PayloadName, Path] | None = None,
    ) -> Trained:
        """Train one round and write the update.

        Args:
            number: round, from 1.
            model: flat buffer of the federated tensors, x.
            delta: receives the change of the parameters, w - x.
            buffers: receives the values of the buffers; None if there are none.
            attempt: which asking of this round; it changes nothing but whose verdict settles the local state.
            optimizer_in: flat buffer of aggregated optimizer state; None: start without.
            optimizer_out: receives optimizer state; None unless the plan aggregates it.
            inputs: what the algorithm broadcasts, by payload name.
            outputs: receives the algorithm's own payloads, by name.

        Raises:
            PlanError: the task broke a rule; subclasses say which.
            StorageError: a file cannot be read or written.
            Exception: whatever the author's code raises.
        """
        came = {MODEL: model, OPTIMIZER: optimizer_in, **(inputs or {})}
        goes = {DELTA: delta, BUFFERS: buffers, OPTIMIZER: optimizer_out, **(outputs or {})}
        exchange = FileExchange(
            self._schema,
            {name: path for name, path in came.items() if path is not None},
            {name: path for name, path in goes.items() if path is not None},
            self._kept,
        )
        return self._work.train(number, attempt, exchange, exchange)

    def evaluate(self, *, number: int, model: Path) -> Worked:
        """Evaluate the model of a round on the site's validation data.

        Raises:
            PlanError: the task broke a rule.
            StorageError: the model file cannot be read.
            Exception: whatever the author's code raises.
        """
        return self._work.evaluate(number, FileExchange(self._schema, {MODEL: model}, {}))

    @property
    def has_pending(self) -> bool:
        """Whether training left state that `keep` would promote or drop."""
        return self._work.has_pending

    def keep(self, number: int, attempt: int = 1, *, counted: bool) -> None:
        """Promote or drop the state an attempt at a round left.

        Raises:
            StorageError: it cannot be moved.
        """
        self._work.keep(number, attempt, counted=counted)


def _read_base(path: Path | None) -> Buffer | None:
    """Map the file: a large frozen backbone is copied into the model page by page, never read whole."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if path.stat().st_size else b""
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
