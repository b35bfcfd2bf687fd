"""Certificates renew themselves in the middle of a round: no round is lost, nothing is trained twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from federation.names import FederationName, Identity, Role
from federation.pki.authority import DAY_S, CertificateAuthority, issue_identity
from federation.transport.credentials import TlsFiles

if TYPE_CHECKING:
    from pathlib import Path


def test_an_envoy_whose_certificate_is_due_renews_it_and_the_round_goes_on(
    start: Any, kill: Any, tmp_path: Path
) -> None:
    kept = {name: {"keep_workspaces": True} for name in ("north", "south")}
    with start(tmp_path, settings=kept) as trial:
        run = trial.submit(plan={"rounds": 3, "seed": 7}, holds={"south": [2]})
        run.gate.listen("train south 2")
        run.until_admitted(2, 1)
        collaborators = run.processes("collaborator")
        kill(trial.daemon("envoy-south"))
        folder = trial.folder / "sites" / "south"
        authority = CertificateAuthority.load(trial.folder / "ca")
        south = Identity(federation=FederationName(authority.federation), role=Role.ENVOY, name="south")
        began = time.time() - 25 * DAY_S
        due = issue_identity(authority, south, folder, now=began, lifetime_s=30 * DAY_S, force=True)
        trial.local.start_envoy("south")
        # Its collaborator, adopted, is told of the certificate and comes anew.
        run.until(lambda event: event.kind == "site" and event.site == "south" and event.text == "ready")
        run.gate.open("south")
        details = run.complete()

        facts = TlsFiles.in_folder(folder).check(now=time.time())
        assert facts.serial != due.serial
        assert facts.expires_at > time.time() + 300 * DAY_S
        assert details.summary.degraded is False, run.story
        for one in details.rounds:
            assert {entry.site: entry.outcome for entry in one.contributions} == {
                "north": "counted",
                "south": "counted",
            }
        assert (run.gate.count("train north 2"), run.gate.count("train south 2")) == (1, 1)
        assert {one.epoch for one in details.rounds} == {1}
        logs = [*folder.glob("state/experiments/*/collaborator.log"), trial.folder / "logs" / "envoy-south.log"]
        said = "\n".join(log.read_text() for log in logs)
        assert len(logs) == 2 and "certificate renewed" in said
        assert "attends no more" not in said and "superseded" not in said
        assert said.count('"taking part') >= 2
        assert len(collaborators) == 2

        again = trial.submit(plan={"rounds": 1})
        again.complete()
