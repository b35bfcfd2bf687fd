"""Every metric of every process, declared once.

Rules:

1. Names begin with ``federation_`` and end with their unit; counters end with ``_total``.
2. A label's value comes from an Enum of ours, from a validated name (`federation.names`), or from a metric name that
   plan and schema bound; never from a peer's free text, which could make a series per message.
3. Each process has one `Metrics` with its own registry, made where the process is assembled; there is no global one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from federation.names import check_name
from federation.runtime.resources import peak_resident_bytes, resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# From a round without training on one machine to half an hour of local work.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_METRIC_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")


class Metrics:
    """The metrics of one process; attributes are named as the series, without ``federation_``.

    Attributes:
        registry: what `federation.telemetry.http.MonitoringServer` shows.
        rpc_total: calls served, by method, role of the caller and status code.
        rpc_seconds: time from a call's start to its end, by method; streams count when they end.
        refused_calls_total: calls refused before they were parsed, by reason.
        round_phase_seconds: time spent in a phase of a round, by phase.
        round_number: the round an aggregator or collaborator is in.
        rounds_committed_total: rounds committed.
        payload_bytes_total: bytes of payloads as encoded, and of files (``bundle``, ``model``, ``artifact``), by
            direction (``in``, ``out``) and payload name.
        transfers_total: transfers of payloads begun by PullModel and PushUpdate, those that go on after a cut again, by
            direction (``in``, ``out``) and way: ``line``, a connection of its own, or ``call``. What travels inside a
            session is not counted.
        updates_admitted_total: updates that count; a site that sent its own in the session learns it with the verdict.
        updates_refused_total: updates that do not, by `federation.errors.Refusal`.
        sites: sites by state; an aggregator's are ``joining`` or ``ready``.
        experiments: experiments by state.
        queue_depth: experiments that wait for sites or for a slot.
        aggregation_seconds: time to combine one round's updates.
        local_training_seconds: time a trainer took for one round.
        local_evaluation_seconds: time a trainer took to evaluate one model.
        trainer_failures_total: tasks that failed in a trainer.
        children: child processes running, by kind.
        child_restarts_total: children started again after they died, by kind.
        train_metric: latest training metric, by metric and site; site ``""`` is the federation's.
        evaluation_metric: latest evaluation metric, by metric and site; site ``""`` is the federation's.
        update_score: score of a site's update in the last committed round, by score (`federation.aggregation.scores`)
            and site; a site that did not count in it has none.
        update_norm: L2 norm of a site's parameter change that counted in the last committed round, by site.
        sites_quarantined: sites in quarantine, of an aggregator's experiment.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._declare_calls()
        self._declare_rounds()
        self._declare_processes()
        self._process = _ProcessCollector()
        self.registry.register(self._process)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"federation_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"federation_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"federation_{name}", text, labels, buckets=_SECONDS, registry=self.registry)

    def _declare_calls(self) -> None:
        self.rpc_total = self._counter("rpc_total", "Calls served.", "method", "role", "code")
        self.rpc_seconds = self._histogram("rpc_seconds", "Duration of calls, seconds.", "method")
        self.refused_calls_total = self._counter(
            "refused_calls_total", "Calls refused before their message was parsed.", "reason"
        )
        self.payload_bytes_total = self._counter(
            "payload_bytes_total", "Bytes of payloads and files moved.", "direction", "payload"
        )
        self.transfers_total = self._counter(
            "transfers_total",
            "Transfers of payloads begun outside of a session: over a line, or in a call, as those up to 4 MiB all do.",
            "direction",
            "way",
        )

    def _declare_rounds(self) -> None:
        self.round_phase_seconds = self._histogram(
            "round_phase_seconds", "Time in a phase of a round, seconds.", "phase"
        )
        self.round_number = self._gauge("round_number", "The present round; 0 before the first.")
        self.rounds_committed_total = self._counter("rounds_committed_total", "Rounds committed.")
        self.updates_admitted_total = self._counter("updates_admitted_total", "Updates admitted.")
        self.updates_refused_total = self._counter("updates_refused_total", "Updates refused.", "reason")
        self.update_score = self._gauge(
            "update_score", "Score of a site's update that counted in the last committed round.", "score", "site"
        )
        self.update_norm = self._gauge(
            "update_norm", "L2 norm of a site's change that counted in the last committed round.", "site"
        )
        self.sites_quarantined = self._gauge("sites_quarantined", "Sites in quarantine.")
        self.aggregation_seconds = self._histogram("aggregation_seconds", "Time to combine a round's updates, seconds.")
        self.local_training_seconds = self._histogram(
            "local_training_seconds", "Time to train one round here, seconds."
        )
        self.local_evaluation_seconds = self._histogram(
            "local_evaluation_seconds", "Time to evaluate one model here, seconds."
        )
        self.train_metric = self._gauge(
            "train_metric",
            "Training metric of the latest round a site counted in; site is empty for the federation's.",
            "metric",
            "site",
        )
        self.evaluation_metric = self._gauge(
            "evaluation_metric",
            "Evaluation metric of the latest model a site measured; site is empty for the federation's.",
            "metric",
            "site",
        )

    def _declare_processes(self) -> None:
        self.sites = self._gauge("sites", "Sites known, by state.", "state")
        self.experiments = self._gauge("experiments", "Experiments, by state.", "state")
        self.queue_depth = self._gauge("queue_depth", "Experiments waiting for sites or for a slot.")
        self.trainer_failures_total = self._counter("trainer_failures_total", "Tasks that failed in a trainer.")
        self.children = self._gauge("children", "Child processes running.", "kind")
        self.child_restarts_total = self._counter("child_restarts_total", "Children started again after dying.", "kind")

    def watch_certificate(self, identity: str, not_after: Callable[[], float]) -> None:
        """Show when a certificate of this process expires, as ``certificate_expiry_seconds``.

        Args:
            identity: label; the SPIFFE id of the certificate.
            not_after: called on each scrape, so that a renewal shows; Unix seconds.
        """
        self._process.certificates[identity] = not_after

    def set_train_metric(self, metric: str, value: float, site: str = "") -> None:
        """Show a training metric.

        Raises:
            ValueError: `metric` cannot be a metric's name.
            InvalidNameError: `site` is neither empty nor a name.
        """
        self.train_metric.labels(*_checked(metric, site)).set(value)

    def set_evaluation_metric(self, metric: str, value: float, site: str = "") -> None:
        """Show an evaluation metric.

        Raises:
            ValueError: `metric` cannot be a metric's name.
            InvalidNameError: `site` is neither empty nor a name.
        """
        self.evaluation_metric.labels(*_checked(metric, site)).set(value)


def _checked(metric: str, site: str) -> tuple[str, str]:
    if not _METRIC_NAME.fullmatch(metric):
        raise ValueError(f"metric name {metric[:80]!r} is not valid: use letters, digits and underscores, 64 at most")
    return metric, check_name(site, "site name") if site else ""


class _ProcessCollector(Collector):
    """What is read at the moment somebody looks, rather than kept up to date."""

    def __init__(self) -> None:
        self.certificates: dict[str, Callable[[], float]] = {}

    def collect(self) -> Iterator[Metric]:
        """Measure this process now."""
        yield GaugeMetricFamily(
            "federation_resident_memory_bytes", "Resident memory of this process, bytes.", value=resident_bytes()
        )
        yield GaugeMetricFamily(
            "federation_peak_resident_memory_bytes",
            "Highest resident memory of this process so far, bytes.",
            value=peak_resident_bytes(),
        )
        expiry = GaugeMetricFamily(
            "federation_certificate_expiry_seconds",
            "When a certificate of this process expires, Unix seconds.",
            labels=["identity"],
        )
        for identity, not_after in self.certificates.items():
            expiry.add_metric([identity], not_after())
        yield expiry
