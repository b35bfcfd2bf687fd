"""Rounds a second of a simulation, beside a bare PyTorch loop that does the same training in the same process.

100 silos hold the digits (IID, 14 or 15 examples each), 10 are sampled a round, each trains an MLP 64-32-10 for one
epoch of batches of 32 with SGD; nothing is evaluated. The bare loop is what a researcher writes in ten lines: load the
global weights, a fresh optimizer, shuffled batches, the mean of the results by examples. It checks nothing, records
nothing and cannot be repeated by seed.

Ratio: our rounds a second over the bare loop's. Runs are short and alternate, and medians are taken, because machines
drift. What two workers could give at best is measured beside them: two bare loops at once, in processes that have
nothing to do with each other; ``two_bare`` is the rounds a second of both together, over those of one alone.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.results import Result, median

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from federation import Experiment
    from federation.data.shard import Shard

SITES = 100
SAMPLE = 10
BATCH = 32
LEARNING_RATE = 0.1


def measure(*, workers: tuple[int, ...] = (1, 2), rounds: int = 60, repeats: int = 15) -> Iterator[Result]:
    """Compare each number of workers with the bare loop.

    Args:
        workers: numbers of workers, in turn.
        rounds: of each run.
        repeats: runs of each.
    """
    from federation.data.part import divide
    from federation.data.samples import WholeDigits

    parts = divide(WholeDigits(), "iid", SITES, 0)
    shards = {f"site-{number:03d}": part for number, part in enumerate(parts)}
    bare_rates: list[float] = []
    pair_rates: list[float] = []
    rates: dict[int, list[float]] = {count: [] for count in workers}
    with _pair(parts, rounds) as both:
        for repeat in range(repeats + 1):  # the first warms up
            bare, pair = _bare(parts, rounds), both()
            found = {count: _simulated(shards, rounds, count) for count in workers}
            if repeat:
                bare_rates.append(bare)
                pair_rates.append(pair)
                for count, rate in found.items():
                    rates[count].append(rate)
    limit = median(bare_rates)
    settings = {
        "rounds": rounds,
        "repeats": repeats,
        "batch_size": BATCH,
        "model": "64-32-10",
        "two_bare": round(median(pair_rates) / limit, 3),
    }
    for count in workers:
        value = median(rates[count])
        yield Result(
            benchmark="simulation",
            case=f"{SITES} silos, {SAMPLE} sampled, {count} worker{'s' if count > 1 else ''}",
            value=value,
            unit="rounds/s",
            limit=limit,
            ratio=value / limit,
            settings={**settings, "workers": count},
        )


def make_model() -> Any:
    """Make the MLP 64-32-10."""
    import torch

    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def _experiment(rounds: int) -> Experiment:
    from federation import Experiment, Plan, SupervisedTask

    plan = Plan(rounds=rounds, evaluate_every=0, learning_rate=LEARNING_RATE, seed=1)
    return Experiment(
        name="simulation", model=make_model, task=SupervisedTask(batch_size=BATCH), shard="digits", plan=plan
    )


def _simulated(shards: dict[str, Shard], rounds: int, workers: int) -> float:
    """Return rounds a second, from the end of the first round on: what starting takes is left out."""
    from federation.simulation import simulate

    times: list[float] = []
    result = simulate(
        _experiment(rounds + 1), sites=sorted(shards), data=shards, sample=SAMPLE, workers=workers,
        on_round=lambda _: times.append(time.perf_counter()),
    )  # fmt: skip
    if result.outcome != "completed":
        raise RuntimeError(f"the simulation {result.outcome}: {result.reason}")
    return rounds / (times[-1] - times[0])


@contextmanager
def _pair(parts: list[Shard], rounds: int) -> Iterator[Callable[[], float]]:
    """Give what runs two bare loops at once, and returns the rounds a second of both together."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        children.append(context.Process(target=_one_of_a_pair, args=(theirs, parts), daemon=True))
        children[-1].start()
        theirs.close()
        pipes.append(ours)

    def both() -> float:
        for pipe in pipes:
            pipe.send(rounds)
        return float(sum(pipe.recv() for pipe in pipes))

    try:
        yield both
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            child.join()


def _one_of_a_pair(pipe: Connection, parts: list[Shard]) -> None:
    try:
        while True:
            pipe.send(_bare(parts, pipe.recv()))
    except EOFError:
        pass


def _bare(parts: list[Shard], rounds: int) -> float:
    """Return rounds a second of the plain loop, on one thread as the plan has it."""
    import random

    import torch
    import torch.nn.functional as functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    draw = random.Random(1)
    data = [(torch.from_numpy(part.train[0]), torch.from_numpy(part.train[1])) for part in parts]
    model = make_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    began = time.perf_counter()
    for _ in range(rounds):
        chosen = draw.sample(range(len(data)), SAMPLE)
        total = sum(len(data[site][1]) for site in chosen)
        mean = {name: torch.zeros_like(value) for name, value in weights.items()}
        for site in chosen:
            samples, targets = data[site]
            model.load_state_dict(weights)
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
            order = torch.randperm(len(targets))
            losses = 0.0
            for start in range(0, len(targets), BATCH):
                batch = order[start : start + BATCH]
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(samples[batch]), targets[batch])
                loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
                optimizer.step()
                losses += loss.item()
            for name, value in model.state_dict().items():
                mean[name] += value * (len(targets) / total)
        weights = mean
    seconds = time.perf_counter() - began
    torch.set_num_threads(threads)
    return rounds / seconds
