"""Committed rounds on the wire: `RoundRecord` and its sites, from aggregator to director to people."""

from __future__ import annotations

import math
import re

from federation.errors import InvalidNameError, MalformedMessageError
from federation.names import Epoch, RoundNumber, SiteName, check_name
from federation.rounds.history import QuarantinedSite, RoundRecord, SiteOutcome, SiteRecord
from federation.v1 import director_pb2
from federation.wire.updates import metrics_from_proto, seconds_from_proto

MAX_SITES = 10_000
MAX_REASON_CHARACTERS = 4096
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_PHASE = re.compile(r"[a-z_]{1,32}")
_MAX_PHASES = 32


def report_to_proto(record: RoundRecord) -> director_pb2.RoundReport:
    """Return a committed round as a message."""
    return director_pb2.RoundReport(
        round=record.round,
        epoch=record.epoch,
        sequence=record.sequence,
        started_at=record.started_at,
        seconds=record.seconds,
        phase_seconds=record.phase_seconds,
        contributions=[_site_to_proto(site) for site in record.sites],
        train_metrics=record.train_metrics,
        metrics=record.metrics,
        model_digest=record.model_digest,
        is_best=record.is_best,
        bytes_down=record.bytes_down,
        bytes_up=record.bytes_up,
        update_norm=record.update_norm,
        simulated_seconds=record.simulated_seconds,
        algorithm_scalars=record.algorithm_scalars,
        total_sites=record.total_sites,
        rule_note=record.rule_note,
        quarantined=[
            director_pb2.QuarantinedSite(
                site=row.site, since_round=row.since_round, releases=row.releases, reason=row.reason
            )
            for row in record.quarantined
        ],
        unevaluated={str(site): reason for site, reason in record.unevaluated.items()},
    )


def report_from_proto(message: director_pb2.RoundReport) -> RoundRecord:
    """Read a committed round.

    Raises:
        MalformedMessageError: a number, name, outcome or digest cannot mean anything.
    """
    if message.round < 1 or message.epoch < 1:
        raise MalformedMessageError(f"report of round {message.round}, epoch {message.epoch}; both count from 1")
    if max(len(message.contributions), len(message.quarantined), len(message.unevaluated)) > MAX_SITES:
        raise MalformedMessageError(f"a report of more than {MAX_SITES} sites")
    if len(message.phase_seconds) > _MAX_PHASES or not all(_PHASE.fullmatch(phase) for phase in message.phase_seconds):
        raise MalformedMessageError("phase_seconds names what is no phase")
    sites = tuple(_site_from_proto(site) for site in message.contributions)
    if len({site.site for site in sites}) != len(sites):
        raise MalformedMessageError("a site is reported twice")
    phases = message.phase_seconds
    return RoundRecord(
        round=RoundNumber(message.round),
        epoch=Epoch(message.epoch),
        sequence=message.sequence,
        started_at=seconds_from_proto(message.started_at, "started_at"),
        seconds=seconds_from_proto(message.seconds, "seconds"),
        phase_seconds={name: seconds_from_proto(phases[name], f"phase {name}") for name in sorted(phases)},
        sites=sites,
        train_metrics=metrics_from_proto(message.train_metrics, "train_metrics"),
        metrics=metrics_from_proto(message.metrics, "metrics"),
        model_digest=_hex(message.model_digest, "model_digest"),
        is_best=message.is_best,
        bytes_down=message.bytes_down,
        bytes_up=message.bytes_up,
        update_norm=_at_least_0(message.update_norm, "update_norm"),
        simulated_seconds=seconds_from_proto(message.simulated_seconds, "simulated_seconds"),
        algorithm_scalars=metrics_from_proto(message.algorithm_scalars, "algorithm_scalars"),
        total_sites=message.total_sites,
        rule_note=_bounded(message.rule_note, "rule_note"),
        quarantined=tuple(map(_quarantined_from_proto, message.quarantined)),
        unevaluated=dict(_unevaluated_from_proto(*row) for row in sorted(message.unevaluated.items())),
    )


def _unevaluated_from_proto(name: str, reason: str) -> tuple[SiteName, str]:
    try:
        site = SiteName(check_name(name, "site name"))
    except InvalidNameError as error:
        raise MalformedMessageError(f"evaluation of {name[:80]!r}: {error}") from error
    return site, _bounded(reason, "reason of a missing evaluation")


def _quarantined_from_proto(message: director_pb2.QuarantinedSite) -> QuarantinedSite:
    try:
        site = SiteName(check_name(message.site, "site name"))
    except InvalidNameError as error:
        raise MalformedMessageError(f"quarantine of {message.site[:80]!r}: {error}") from error
    return QuarantinedSite(
        site=site,
        since_round=RoundNumber(message.since_round),
        releases=message.releases,
        reason=_bounded(message.reason, "reason of a quarantine"),
    )


def _site_to_proto(record: SiteRecord) -> director_pb2.Contribution:
    return director_pb2.Contribution(
        site=record.site,
        outcome=record.outcome.value,
        reason=record.reason,
        examples=record.examples,
        weight=record.weight,
        update_norm=record.update_norm,
        train_seconds=record.train_seconds,
        transfer_seconds=record.transfer_seconds,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        train_metrics=record.train_metrics,
        metrics=record.metrics,
        update_digest=record.update_digest,
        validation_examples=record.validation_examples,
        oracle_calls=record.oracle_calls,
        peak_memory=record.peak_memory,
        staleness=record.staleness,
        scores=record.scores,
    )


def _site_from_proto(message: director_pb2.Contribution) -> SiteRecord:
    try:
        site = SiteName(check_name(message.site, "site name"))
        outcome = SiteOutcome(message.outcome)
    except (InvalidNameError, ValueError) as error:
        raise MalformedMessageError(f"contribution of {message.site[:80]!r}: {error}") from error
    weight = _at_least_0(message.weight, "weight")
    if weight > 1 + 1e-9:
        raise MalformedMessageError(f"weight of {site} is {weight}, expected a share of 0 to 1")
    return SiteRecord(
        site=site,
        outcome=outcome,
        reason=_bounded(message.reason, "reason"),
        examples=message.examples,
        weight=weight,
        update_norm=_at_least_0(message.update_norm, "update_norm"),
        train_seconds=seconds_from_proto(message.train_seconds, "train_seconds"),
        transfer_seconds=seconds_from_proto(message.transfer_seconds, "transfer_seconds"),
        bytes_up=message.bytes_up,
        bytes_down=message.bytes_down,
        train_metrics=metrics_from_proto(message.train_metrics, f"train_metrics of {site}"),
        metrics=metrics_from_proto(message.metrics, f"metrics of {site}"),
        update_digest=_hex(message.update_digest, "update_digest") if message.update_digest else "",
        validation_examples=message.validation_examples,
        oracle_calls=message.oracle_calls,
        peak_memory=message.peak_memory,
        staleness=message.staleness,
        scores=metrics_from_proto(message.scores, f"scores of {site}"),
    )


def _bounded(text: str, what: str) -> str:
    if len(text) > MAX_REASON_CHARACTERS:
        raise MalformedMessageError(f"{what} of {len(text)} characters, at most {MAX_REASON_CHARACTERS}")
    return text


def _hex(text: str, what: str) -> str:
    if not _HEX_DIGEST.fullmatch(text):
        raise MalformedMessageError(f"{what} {text[:80]!r} is not a SHA-256 in lower-case hex")
    return text


def _at_least_0(value: float, what: str) -> float:
    if not math.isfinite(value) or value < 0:
        raise MalformedMessageError(f"{what} is {value}, expected a finite number of 0 or more")
    return value
