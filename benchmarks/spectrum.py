"""`python -m benchmarks.spectrum`: time and memory of spectra as multiples of a gradient, beside the arithmetic floor.

The floor is counted by hand in multiply-adds over those of a gradient, for the convolutions and linear layers of a
Sequential: columns go back, and each pair of them meets at each layer by the cheaper of two ways, without symmetric
halves counted twice (see `Layer`). It says what a machine that only multiplied would need, at the same speed for all.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor, nn

import hbpcompiler as hbp

from .memory import MEBI, Peak, growth, printed
from .networks import Problem, find, problem
from .peers import Run, gradient
from .timing import interleaved, prepare

CASES = {"3c3d": 64, "2c2d": 16}
"""Networks and batch sizes."""
TOP = 10
ELEVEN_GB = 11 * 2**30
VIVIT = {"3c3d": {"eigenvalues": 909, "top eigenvector": 677, "Newton step": 208},
         "2c2d": {"eigenvalues": 1753, "top eigenvector": 872, "Newton step": 66}}
"""The largest batches that fit into 11 GB, exact and for all parameters, as the authors of ViViT published them."""


@dataclass(frozen=True)
class Layer:
    """Multiply-adds of a layer with weight [outputs, inputs] at so many positions, for one sample."""

    inputs: int
    outputs: int
    positions: int

    @property
    def forward(self) -> int:
        return self.inputs * self.outputs * self.positions

    def gram(self, samples: int, columns: int) -> float:
        """Inner products of all columns at this weight: formed, then multiplied; or over pairs of positions."""
        rows, pairs = samples * columns, (samples * columns) ** 2 / 2
        formed = rows * self.forward + pairs * self.inputs * self.outputs
        seen = samples**2 / 2 * self.positions**2 * self.inputs
        return min(formed, seen + pairs * self.positions**2 * (self.outputs + 1))


def layers_of(network: str) -> list[Layer]:
    """Those with weights, in the order of the forward pass."""
    model, shape, found = find(network).build(), find(network).shape, []
    value = torch.zeros(1, *shape)
    for module in model:
        value = module(value)
        if isinstance(module, nn.Linear):
            found.append(Layer(module.in_features, module.out_features, 1))
        elif isinstance(module, nn.Conv2d):
            found.append(Layer(module.weight[0].numel(), module.out_channels, value[0, 0].numel()))
    return found


def floor(network: str, samples: int, columns: int) -> dict[str, float]:
    """Multiply-adds of each task over those of a gradient. Nothing goes back through the first layer."""
    layers = layers_of(network)
    whole = samples * sum(layer.forward for layer in layers)
    back = whole - samples * layers[0].forward
    gradient = 2 * whole + back
    grams = sum(layer.gram(samples, columns) for layer in layers)
    cross = samples**2 * columns * sum(layer.outputs for layer in layers if layer.positions == 1)
    eigen = 4 * (samples * columns) ** 3  # to tridiagonal form and back, in float64
    spectrum = gradient + columns * back + grams + cross + eigen
    return {"eigenvalues": spectrum / gradient, "Newton step": (2 * whole + back) / gradient,
            f"{TOP} eigenvectors": (whole + TOP * (whole + back)) / gradient}


# -- what is measured ------------------------------------------------------------------------------------------------

Task = Callable[[Problem], Callable[[], Any]]


def eigenvalues(given: Problem, **options: Any) -> Callable[[], Any]:
    compiled = hbp.spectrum(given.model, given.loss, **options)
    return lambda: compiled(given.inputs, given.target).eigenvalues


def newton_step(given: Problem) -> Callable[[], Any]:
    """The second phase alone."""
    spectrum = hbp.spectrum(given.model, given.loss)(given.inputs, given.target)
    return lambda: spectrum.newton_step(damping=1.0)


def both(given: Problem) -> Callable[[], Any]:
    """Eigenvalues and Newton step."""
    compiled = hbp.spectrum(given.model, given.loss)
    return lambda: compiled(given.inputs, given.target).newton_step(damping=1.0)


def vectors(given: Problem) -> Callable[[], Any]:
    """The second phase alone."""
    spectrum = hbp.spectrum(given.model, given.loss)(given.inputs, given.target)
    return lambda: spectrum.vectors(top=TOP)


def decomposition(given: Problem) -> Callable[[], Any]:
    """The float64 decomposition alone, of a matrix of that size."""
    order = given.size * (find_classes(given) - 1)
    half: Tensor = torch.randn(order, order, dtype=torch.float64)
    matrix = half @ half.mT
    return lambda: torch.linalg.eigh(matrix)


def find_classes(given: Problem) -> int:
    return int(given.model(given.inputs[:1]).shape[1])


TASKS: Mapping[str, Task] = {
    "gradient": lambda given: gradient(given).call,
    "eigenvalues": eigenvalues,
    "eigenvalues of sampled": lambda given: eigenvalues(given, columns="sampled"),
    "Newton step": newton_step,
    "eigenvalues and step": both,
    f"{TOP} eigenvectors": vectors,
    "eigh alone": decomposition,
}


def measure(network: str, samples: int, rounds: int, threads: int, patience: float, with_memory: bool,
            tasks: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each task."""
    given = problem(network, samples)
    measured = interleaved({name: Run(TASKS[name](given), lambda _: {}) for name in tasks}, rounds, 300, patience)
    floors = floor(network, samples, find_classes(given) - 1)
    rows = []
    for name in tasks:
        seconds = measured[name].median if measured[name].seconds else math.nan
        peak = _peak(network, samples, name, threads) if with_memory else Peak(None, "not asked for")
        rows.append({
            "task": name, "seconds": seconds, "multiple": seconds / measured["gradient"].median,
            "floor": floors.get(name), "mebibytes": None if peak.bytes is None else peak.bytes / MEBI,
            "vivit": VIVIT[network].get(name) if network in VIVIT else None,
        })
    return rows


def _peak(network: str, samples: int, task: str, threads: int) -> Peak:
    return printed("benchmarks.spectrum", ["--peak", network, str(samples), task, "--threads", str(threads)], 600)


def _print_peak(network: str, samples: int, task: str) -> None:
    call = TASKS[task](problem(network, samples))
    call()
    print(json.dumps(growth(call)))


def largest_batch(network: str, room: int = ELEVEN_GB) -> int:
    """The most samples whose eigenvalues are predicted to fit."""
    given = problem(network, 2)
    compiled = hbp.spectrum(given.model, given.loss, verify=False)
    compiled(given.inputs, given.target)
    low, high = 1, 2
    while compiled.predicted_memory(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if compiled.predicted_memory(middle) <= room else (low, middle)
    return low


@click.command()
@click.option("--networks", default=",".join(CASES), show_default=True)
@click.option("--batch", default=0, help="Samples; 0: each network's own number.")
@click.option("--tasks", default=",".join(TASKS), show_default=True)
@click.option("--rounds", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--patience", default=60.0, show_default=True, help="Seconds to wait for a quiet machine.")
@click.option("--no-memory", is_flag=True)
@click.option("--json", "file", type=click.Path(), help="Where the numbers go, too.")
@click.option("--peak", type=(str, int, str), hidden=True)
def main(networks: str, batch: int, tasks: str, rounds: int, threads: int, patience: float, no_memory: bool,
         file: str | None, peak: tuple[str, int, str] | None) -> None:
    """Spectra of all parameters together, with exact columns."""
    prepare(threads)
    if peak is not None:
        _print_peak(*peak)
        return
    found = {}
    for network in networks.split(","):
        samples = batch or CASES.get(network, 16)
        asked = ["gradient", *(task for task in tasks.split(",") if task != "gradient")]
        rows = measure(network, samples, rounds, threads, patience, not no_memory, asked)
        found[f"{network}:{samples}"] = rows
        print(f"\n{find(network).title}:{samples}, {threads} threads")
        print(f"{'task':22} {'ms':>9} {'gradients':>10} {'floor':>7} {'peak MiB':>9}")
        for row in rows:
            known = [f"{row['floor']:7.1f}" if row["floor"] else f"{'':7}",
                     f"{row['mebibytes']:9.0f}" if row["mebibytes"] is not None else f"{'-':>9}"]
            print(f"{row['task']:22} {1000 * row['seconds']:9.1f} {row['multiple']:10.2f} {' '.join(known)}")
        if network in VIVIT and not no_memory:
            theirs = ", ".join(f"{task} {count}" for task, count in VIVIT[network].items())
            print(f"largest batch in 11 GB: eigenvalues {largest_batch(network)} predicted; ViViT's: {theirs}")
    if file:
        with open(file, "w", encoding="utf-8") as stream:
            json.dump(found, stream, indent=1)


if __name__ == "__main__":
    sys.exit(main())
