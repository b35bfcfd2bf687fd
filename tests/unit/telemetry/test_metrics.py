"""What Prometheus is shown, and that a stranger's text never becomes a label."""

from __future__ import annotations

import re

import pytest
from prometheus_client import generate_latest

from federation.errors import InvalidNameError
from federation.telemetry.metrics import Metrics


def _shown(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_every_series_is_ours_by_name() -> None:
    names = re.findall(r"^# TYPE (\S+)", _shown(Metrics()), flags=re.MULTILINE)
    assert names
    assert all(name.startswith("federation_") for name in names)
    counters = re.findall(r"^# TYPE (\S+) counter", _shown(Metrics()), flags=re.MULTILINE)
    assert counters and all(name.endswith("_total") for name in counters)


def test_two_processes_worth_of_metrics_can_live_in_one() -> None:
    one, other = Metrics(), Metrics()
    one.updates_admitted_total.inc()
    assert "federation_updates_admitted_total 1.0" in _shown(one)
    assert "federation_updates_admitted_total 0.0" in _shown(other)


def test_resident_memory_is_read_when_somebody_looks() -> None:
    match = re.search(r"^federation_resident_memory_bytes (\S+)$", _shown(Metrics()), flags=re.MULTILINE)
    assert match is not None and float(match[1]) > 1_000_000


def test_a_renewed_certificate_shows_its_new_end() -> None:
    metrics = Metrics()
    ends = [1000.0]
    metrics.watch_certificate("spiffe://clinics/envoy/a", lambda: ends[-1])
    series = 'federation_certificate_expiry_seconds{identity="spiffe://clinics/envoy/a"}'
    assert f"{series} 1000.0" in _shown(metrics)
    ends.append(2000.0)
    assert f"{series} 2000.0" in _shown(metrics)


def test_metrics_are_shown_by_site_and_for_the_federation() -> None:
    metrics = Metrics()
    metrics.set_train_metric("loss", 0.5, "clinic-a")
    metrics.set_evaluation_metric("accuracy", 0.9)
    assert 'federation_train_metric{metric="loss",site="clinic-a"} 0.5' in _shown(metrics)
    assert 'federation_evaluation_metric{metric="accuracy",site=""} 0.9' in _shown(metrics)


def test_refuses_labels_that_are_no_names() -> None:
    metrics = Metrics()
    with pytest.raises(InvalidNameError):
        metrics.set_train_metric("loss", 1.0, "Patient/Smith")
    with pytest.raises(ValueError, match="metric name"):
        metrics.set_evaluation_metric('a"} 1', 1.0)
    assert "Smith" not in _shown(metrics)
