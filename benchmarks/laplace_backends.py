"""`python -m benchmarks.laplace_backends`: what Laplace asks of a small convolutional network, by two of its backends.

Every method's call as a multiple of the gradient (forward and backward): CPU seconds of one thread, medians of rounds
in which all take turns. Before that the exact ones are compared in float64, on a few images.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .peers import Run
from .timing import Measured, interleaved, prepare

CLASSES, PIXELS, CHECKED = 10, 32, 3
SLOWEST, LONE = 100.0, 2.0
"""Seconds of a warm-up at most; and from which on it is the only measurement."""
GRADIENT = "gradient"
SAMPLED = {"stochastic": True}
WAYS = {"exact": ("GGN", {}), "sampled": ("GGN", SAMPLED), "empirical": ("EF", {})}
"""By name: which backend of a family, and its options."""
FAMILIES = ("Hbp", "Curvlinops")


class Task(NamedTuple):
    """A backend's method."""

    family: str
    way: str
    method: str

    def __str__(self) -> str:
        return f"{self.family} {self.way} {self.method}"


def network() -> nn.Sequential:
    """Three convolutions, two linear layers, 173,000 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * (PIXELS // 8)**2, 144), nn.ReLU(), nn.Linear(144, CLASSES)).eval()  # fmt: skip


def images(samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 3, PIXELS, PIXELS, dtype=dtype), torch.randint(CLASSES, (samples,))


def backend(family: str, way: str, model: nn.Module) -> Any:
    """An object as Laplace makes one for each fit."""
    from laplace import curvature

    from hbpcompiler.bridges import laplace

    kind, options = WAYS[way]
    module = laplace if family == "Hbp" else curvature
    return getattr(module, f"{family}{kind}")(model, "classification", **options)


def tasks() -> Iterator[Task]:
    for way in WAYS:
        for method in ("diag", "kron"):
            for family in FAMILIES:
                yield Task(family, way, method)
    for family in FAMILIES:
        yield Task(family, "exact", "jacobians")


def called(task: Task, model: nn.Module, X: Tensor, y: Tensor) -> Any:
    own = backend(task.family, task.way, model)
    if task.method == "jacobians":
        return own.jacobians(X)[0]
    if task.method == "kron":
        return own.kron(X, y, len(X))[1]
    return own.diag(X, y)[1]


def largest_gap(model: nn.Module) -> float:
    """Of all exact methods, relative to each one's largest number. Biases are left out of `kron`: of a convolution's
    the default takes something else."""
    model = copy.deepcopy(model).double()
    X, y = images(CHECKED, torch.float64)
    gaps = []
    for way, method in (("exact", "diag"), ("exact", "kron"), ("exact", "jacobians"), ("empirical", "diag"),
                        ("empirical", "kron")):
        found, right = (called(Task(family, way, method), model, X, y) for family in FAMILIES)
        if method != "kron":
            gaps.append(gap(found, right))
            continue
        for own, theirs in zip(found.kfacs, right.kfacs, strict=True):
            if len(own) > 1:
                gaps += [gap(one, other) for one, other in zip(own, theirs, strict=True)]
    return max(gaps)


def gap(found: Tensor, right: Tensor) -> float:
    return float((found - right).abs().max() / right.abs().max())


def runs(model: nn.Module, samples: int) -> dict[str, Run]:
    """The gradient and all tasks, by name."""
    X, y = images(samples, torch.float32)

    def gradient() -> None:
        model.zero_grad()
        F.cross_entropy(model(X), y, reduction="sum").backward()

    calls: dict[str, Callable[[], Any]] = {GRADIENT: gradient}
    for task in tasks():
        calls[str(task)] = lambda task=task: called(task, model, X, y)
    return {name: Run(call, lambda result: {}) for name, call in calls.items()}


def cell(measured: Measured, base: float) -> str:
    return measured.failure or f"{measured.median / base:.1f}"


def table(found: dict[str, Measured]) -> str:
    """A row for each family, in gradients."""
    columns = list(dict.fromkeys((task.way, task.method) for task in tasks()))
    lines = ["".join([f"{'':12}", *(f"{f'{way} {method}':>18}" for way, method in columns)])]
    base = found[GRADIENT].median
    for family in FAMILIES:
        cells = [cell(found[str(Task(family, *column))], base) for column in columns]
        lines.append("".join([f"{family:12}", *(f"{text:>18}" for text in cells)]))
    return "\n".join(lines)


@click.command()
@click.option("--batch", "samples", default=32, show_default=True, help="Images of the batch.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--budget", default=12.0, show_default=True, help="Seconds for one method's rounds.")
def main(samples: int, rounds: int, threads: int, budget: float) -> None:
    """Print the table."""
    try:
        import laplace  # noqa: F401  # whether it is there
    except ImportError:
        click.echo("laplace-torch is not installed")
        sys.exit(2)
    prepare(threads)
    model = network()
    model.output_size = CLASSES  # type: ignore[assignment]  # Laplace sets it so
    click.echo(f"largest difference of the exact ones in float64: {largest_gap(model):.0e}")
    found = interleaved(runs(model, samples), rounds, SLOWEST, patience=0, lone=LONE, budget=budget,
                        clock=time.process_time, alternating=True)
    click.echo(f"gradient of {samples} images: {found[GRADIENT].median * 1e3:.1f} ms; in gradients:")
    click.echo(table(found))


if __name__ == "__main__":
    main()
