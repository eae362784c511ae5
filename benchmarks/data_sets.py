"""`python -m benchmarks.data_sets`: `hbp.accumulate` over a loader, beside loops written by hand.

Samples per second of three ways through the same batches, interleaved, medians over rounds: the gradient as torch users
write it, the compiled program in a bare loop that throws its results away, and `accumulate`. Then the memory of a
process after many batches, which must not grow.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

import click
import torch
from torch import Tensor, nn

import hbpcompiler as hbp

from .networks import problem
from .peers import Run
from .timing import interleaved, prepare

Batches = Sequence[tuple[Tensor, Tensor]]


def loops(network: str, quantity: str, size: int, count: int) -> dict[str, Run]:
    """The three ways, by name."""
    made = problem(network, size * count)
    model, loss = made.model, made.loss
    batches: Batches = list(zip(made.inputs.split(size), made.target.split(size), strict=True))
    compiled = hbp.compile(model, loss, [quantity])

    def gradient() -> None:
        for X, y in batches:
            model.zero_grad()
            loss(model(X), y).backward()

    def bare() -> None:
        for X, y in batches:
            compiled(X, y)

    def accumulated() -> Any:
        return hbp.accumulate(compiled, batches, progress=False)

    return {name: Run(call, lambda result: {}) for name, call in
            {"gradient": gradient, "bare loop": bare, "accumulate": accumulated}.items()}


def growth(batches: int) -> list[tuple[int, float]]:
    """(batches, MiB of the process at most so far) of a long accumulation."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    compiled = hbp.compile(model, None, ["grad", "kfac"])
    seen: list[tuple[int, float]] = []

    def loader() -> Any:
        for number in range(batches):
            if number in (batches // 10, batches // 2, batches - 1):
                seen.append((number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
            yield torch.randn(32, 64), torch.randint(10, (32,))

    hbp.accumulate(compiled, loader(), progress=False)
    return seen


@click.command()
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--batches", default=10_000, show_default=True, help="Of the run whose memory is watched.")
def main(rounds: int, threads: int, batches: int) -> None:
    """Print both tables."""
    prepare(threads)
    click.echo(f"{'network':8} {'quantity':10} {'bare loop':>10} {'accumulate':>11}   over the gradient;  "
               "accumulate over the bare loop")
    for network, quantity, size in (("logreg", "grad", 128), ("3c3d", "grad", 64), ("3c3d", "kfac", 64),
                                    ("3c3d", "variance", 64)):
        runs = loops(network, quantity, size, count=10)
        found = interleaved(runs, rounds, limit=60, patience=60)
        first, bare, own = (found[name].median for name in runs)
        click.echo(f"{network:8} {quantity:10} {bare / first:10.2f} {own / first:11.2f} {own / bare:21.3f}")
    for number, size in growth(batches):
        click.echo(f"after {number} batches the process has had {size:.0f} MiB at most")


if __name__ == "__main__":
    main()
