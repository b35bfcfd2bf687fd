"""``python -m benchmarks NAME [options] [--json]``; NAME ``all`` runs every one, small."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks import (
    codec_round,
    compressors,
    downlink,
    memory,
    robust_rules,
    robustness,
    round_latency,
    simulation,
    startup,
    throughput,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.results import Result

PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"
app = typer.Typer(help="Speed and memory, measured against a limit of the same run.", no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line and case.")]
SitesOption = Annotated[int, typer.Option(min=1, help="Sites of the federation.")]
ParametersOption = Annotated[int, typer.Option(min=1, help="float32 parameters of the model.")]
RoundsOption = Annotated[int, typer.Option(min=3, help="Rounds to run.")]


def _show(results: Iterator[Result], *, as_json: bool) -> None:
    for result in results:
        print(result.to_json() if as_json else result.to_text(), flush=True)


@app.command("round-latency")
def run_round_latency(
    sites: SitesOption = 4,
    parameters: ParametersOption = 10_000,
    rounds: RoundsOption = 40,
    as_json: JsonOption = False,
) -> None:
    """Milliseconds a round costs when nothing is trained."""
    _show(round_latency.measure(sites=sites, parameters=parameters, rounds=rounds), as_json=as_json)


@app.command("throughput")
def run_throughput(
    sites: SitesOption = 4,
    parameters: ParametersOption = 25_000_000,
    rounds: RoundsOption = 6,
    as_json: JsonOption = False,
) -> None:
    """Seconds a round of a large model takes, beside bare mutual-TLS sockets."""
    _show(throughput.measure(sites=sites, parameters=parameters, rounds=rounds), as_json=as_json)


@app.command("codec-round")
def run_codec_round(
    sites: SitesOption = 2,
    parameters: ParametersOption = 5_000_000,
    rounds: RoundsOption = 4,
    codec: Annotated[list[str] | None, typer.Option(help="Compressors to measure; most of ours by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Seconds a round of a large model takes with each compressor, beside the same round sent whole."""
    results = codec_round.measure(sites=sites, parameters=parameters, rounds=rounds, codecs=codec or codec_round.CODECS)
    _show(results, as_json=as_json)


@app.command("memory")
def run_memory(
    sites: Annotated[list[int] | None, typer.Option(help="Numbers of sites to compare; 4 and 16 by default.")] = None,
    parameters: ParametersOption = 25_000_000,
    rounds: RoundsOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Peak resident memory of aggregator and collaborators, in models."""
    _show(memory.measure(sites=tuple(sites or (4, 16)), parameters=parameters, rounds=rounds), as_json=as_json)


@app.command("startup")
def run_startup(
    sites: SitesOption = 4,
    parameters: ParametersOption = 10_000,
    submissions: Annotated[int, typer.Option(min=1, help="Experiments to submit one after another.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Seconds from submitting to the first round."""
    _show(startup.measure(sites=sites, parameters=parameters, submissions=submissions), as_json=as_json)


@app.command("simulation")
def run_simulation(
    rounds: Annotated[int, typer.Option(min=10, help="Rounds of each run.")] = 60,
    as_json: JsonOption = False,
) -> None:
    """Rounds a second of a simulation with one and two workers, beside a bare PyTorch loop."""
    _show(simulation.measure(rounds=rounds), as_json=as_json)


@app.command("compressors")
def run_compressors(
    elements: Annotated[int, typer.Option(min=1000, help="float32 elements of the vector.")] = 25_000_000,
    as_json: JsonOption = False,
) -> None:
    """GB/s of every compressor on one core, beside a copy of the same bytes."""
    _show(compressors.measure(elements=elements), as_json=as_json)


@app.command("downlink")
def run_downlink(
    parameters: Annotated[int, typer.Option(min=1_000_000, help="float32 parameters of the model.")] = 25_000_000,
    as_json: JsonOption = False,
) -> None:
    """Seconds to make and to apply the step of a compressed downlink, beside a copy of the model."""
    _show(downlink.measure(parameters=parameters), as_json=as_json)


@app.command("robustness")
def run_robustness(
    full: Annotated[bool, typer.Option("--full", help="Every defence, attack, f, partition and seed.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of a full table.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Defences to run, by name; may be repeated.")] = None,
    results: Annotated[Path, typer.Option(help="File of lines; what it has is not run again.")] = Path(
        "robustness.jsonl"
    ),
    page: Annotated[bool, typer.Option("--page", help="Write docs/robustness.md of what the file has.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Simulations at once.")] = 2,
) -> None:
    """Accuracy of every rule under every attack, cell by cell; goes on where it was stopped."""
    cells = robustness.full_cells(seeds) if full else robustness.brief_cells()
    unknown = sorted(set(only or ()) - set(robustness.DEFENCES))
    if unknown:
        raise typer.BadParameter(f"no defence {unknown[0]!r}; there are {', '.join(robustness.DEFENCES)}")
    for cell, outcome in robustness.fill(
        [cell for cell in cells if not only or cell.defence in only], results, workers=workers
    ):
        shown = "n/a" if outcome.accuracy is None else f"{outcome.accuracy:6.1%}"
        print(
            f"{cell.defence:32} {cell.attack:12} f={cell.hostile} {cell.partition:14} seed {cell.seed}  {shown}"
            f"  {outcome.reason[:60]}",
            flush=True,
        )
    if page:
        from benchmarks.robustness_page import page_of

        PAGE.write_text(page_of(robustness.read(results)), encoding="utf-8")
        print(f"wrote {PAGE}")


@app.command("robust-rules")
def run_robust_rules(
    sites: SitesOption = 20,
    parameters: ParametersOption = 10_000_000,
    byzantine: Annotated[int, typer.Option(min=1, help="Hostile sites to be stood; sites ≥ 4 of them + 3.")] = 4,
    as_json: JsonOption = False,
) -> None:
    """Seconds and memory of every aggregation rule, beside the plain mean of the same files."""
    _show(robust_rules.measure(sites=sites, parameters=parameters, byzantine=byzantine), as_json=as_json)


@app.command("all")
def run_all(as_json: JsonOption = False) -> None:
    """Every benchmark, small."""
    _show(round_latency.measure(rounds=20), as_json=as_json)
    _show(startup.measure(submissions=2), as_json=as_json)
    _show(throughput.measure(parameters=5_000_000, rounds=5), as_json=as_json)
    _show(memory.measure(parameters=5_000_000), as_json=as_json)
    _show(codec_round.measure(parameters=1_000_000, codecs=("rand_k:0.01", "qsgd:16")), as_json=as_json)
    _show(compressors.measure(elements=1_000_000), as_json=as_json)
    _show(downlink.measure(parameters=2_000_000), as_json=as_json)
    _show(simulation.measure(rounds=40, repeats=3), as_json=as_json)
    _show(robust_rules.measure(sites=11, parameters=200_000, byzantine=2), as_json=as_json)
    _show(robustness.measure(), as_json=as_json)


if __name__ == "__main__":
    app()
