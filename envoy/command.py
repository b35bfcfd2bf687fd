"""The ``envoy`` command: run the daemon, check its settings, and say yes or no to what waits.

Exit codes: 0 all well; 1 refused or failed while running; 2 the settings are not usable or the command was wrong; 3 no
envoy is running that could be asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated, Any, Never

import typer

from envoy import daemon
from envoy.config import EnvoySettings, read_settings
from envoy.identity import read_identity
from federation.collaborator import local_socket
from federation.confinement.sandbox import Sandbox, SandboxMode
from federation.errors import ConfigurationError, FederationError, TransportError
from federation.runtime.clock import SystemClock
from federation.runtime.shutdown import Shutdown
from federation.telemetry import logs

FAILED, UNUSABLE, NOT_RUNNING = 1, 2, 3
_DAY_S = 86400

app = typer.Typer(add_completion=False, no_args_is_help=False, help=__doc__)
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="envoy.toml; without it, environment variables only.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def serve(context: typer.Context, config: Config = None) -> None:
    """Run the envoy until SIGTERM or SIGINT: the first drains, the second stops at once."""
    context.obj = config
    if context.invoked_subcommand is not None:
        return
    settings = _settings(config)
    try:
        site = read_identity(settings, now=time.time()).site
        logs.configure(settings.log_level.upper(), role="envoy", site=site)
        asyncio.run(_serve(settings))
    except ConfigurationError as error:
        _fail(error, UNUSABLE)
    except FederationError as error:
        _fail(error, FAILED)


@app.command()
def check(context: typer.Context, config: Config = None, as_json: Json = False) -> None:
    """Check settings, certificate, sandbox and shards, each loaded in a trainer as it would be later."""
    settings = _settings(config or context.obj)
    logs.configure("WARNING", role="envoy")
    try:
        found = asyncio.run(_check(settings))
    except FederationError as error:
        _fail(error, UNUSABLE)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print_check(found)
    if found["problems"]:
        raise typer.Exit(FAILED)


@app.command()
def pending(
    context: typer.Context,
    config: Config = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those that run or are over.")] = False,
    as_json: Json = False,
) -> None:
    """List the experiments that wait for approval."""
    answer = _ask(_settings(config or context.obj), {"type": "list"})
    rows = [row for row in answer["experiments"] if everything or row["stage"] == "pending"]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if not rows:
        typer.echo("nothing waits" if not everything else "no experiment is known here")
    for row in rows:
        typer.echo(f"{row['experiment']}  {row['outcome'] or row['stage']}  by {row['submitter']} {row['fingerprint']}")
        if row["reason"]:
            typer.echo(f"    {row['reason']}")


@app.command()
def approve(
    context: typer.Context,
    experiment: Annotated[str, typer.Argument(help="Id, as `envoy pending` shows it.")],
    pin: Annotated[bool, typer.Option("--pin", help="Also pin the submitter's key: his next need not wait.")] = False,
    config: Config = None,
) -> None:
    """Let an experiment run that waits. Compare the key's fingerprint with its owner first."""
    typer.echo(
        _ask(_settings(config or context.obj), {"type": "approve", "experiment": experiment, "pin": pin})["text"]
    )


@app.command()
def refuse(
    context: typer.Context,
    experiment: Annotated[str, typer.Argument(help="Id, as `envoy pending` shows it.")],
    reason: Annotated[str, typer.Option("--reason", help="Told to the submitter.")] = "",
    config: Config = None,
) -> None:
    """Refuse an experiment that waits, for good."""
    message = {"type": "refuse", "experiment": experiment, "reason": reason}
    typer.echo(_ask(_settings(config or context.obj), message)["text"])


@app.command()
def settings(as_json: Json = False) -> None:
    """Print every setting with its meaning and default."""
    rows = list(_describe(EnvoySettings, ""))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['setting']}\n    {row['meaning']}")


def main() -> None:
    """Entry point of the ``envoy`` command."""
    app()


async def _serve(settings: EnvoySettings) -> None:
    shutdown = Shutdown()
    shutdown.install()
    try:
        await daemon.run(settings, shutdown)
    finally:
        shutdown.uninstall()


async def _check(settings: EnvoySettings) -> dict[str, Any]:
    now = time.time()
    site = read_identity(settings, now=now)
    catalogue = daemon.make_catalogue(settings, SystemClock())
    await catalogue.describe()
    sandbox = await asyncio.to_thread(Sandbox.choose, SandboxMode(settings.trainer.sandbox))
    return {
        "site": site.site,
        "federation": site.federation,
        "certificate_days": None if site.tls is None else round((site.expires_at() - now) / _DAY_S, 1),
        "sandbox": "bubblewrap" if sandbox.is_confined else "none",
        "weakness": sandbox.describe_weakness(),
        "shards": [
            {
                "name": offer.name,
                "kind": offer.kind,
                "train_examples": offer.train_examples,
                "validation_examples": offer.validation_examples,
                "sample_shape": list(offer.sample_shape),
                "target_shape": list(offer.target_shape),
            }
            for offer in catalogue.offers.shards
        ],
        "problems": dict(catalogue.problems),
    }


def _print_check(found: dict[str, Any]) -> None:
    days = found["certificate_days"]
    typer.echo(f"site {found['site']} of federation {found['federation']}")
    typer.echo("no certificate: insecure, on this machine only" if days is None else f"certificate: {days} days left")
    typer.echo(f"sandbox: {found['sandbox']}" + (f"; {found['weakness']}" if found["weakness"] else ""))
    for shard in found["shards"]:
        typer.echo(
            f"shard {shard['name']} ({shard['kind']}): {shard['train_examples']} training and "
            f"{shard['validation_examples']} validation examples of shape {shard['sample_shape']}"
        )
    for name, why in sorted(found["problems"].items()):
        typer.echo(f"shard {name} cannot be offered: {why}", err=True)


def _describe(model: Any, place: str) -> Any:
    for name, field in model.model_fields.items():
        yield {"setting": place + name, "meaning": field.description}
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                inner = f"{place}{name}[]." if kind is not field.annotation else f"{place}{name}."
                yield from _describe(kind, inner)


def _settings(config: Path | None) -> EnvoySettings:
    try:
        return read_settings(config)
    except FederationError as error:
        _fail(error, UNUSABLE)


def _ask(settings: EnvoySettings, message: dict[str, Any]) -> dict[str, Any]:
    path = settings.state.absolute() / daemon.SOCKET

    async def ask() -> dict[str, Any] | None:
        stream = await local_socket.connect(path)
        try:
            await stream.send(message)
            return await stream.receive()
        finally:
            await stream.aclose()

    try:
        answer = asyncio.run(ask())
    except TransportError as error:
        _fail(error, NOT_RUNNING)
    if answer is None or answer["type"] == "error":
        _fail(ConfigurationError(str(answer["text"]) if answer else "the envoy gave no answer"), FAILED)
    return answer


def _fail(error: FederationError, code: int) -> Never:
    typer.echo(f"envoy: {error}", err=True)
    raise typer.Exit(code) from error
