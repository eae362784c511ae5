"""`python -m benchmarks.optimizers`: what a step of KFAC costs, in multiples of one of Adam.

A run of KFAC has three kinds of steps: most compute the gradient alone and multiply it by the inverse, every
`update_every`-th brings the curvature up to date, every `invert_every`-th finds the inverse too. Each is timed by
itself, in turns with Adam's whole step (zero_grad, forward, backward, step), and the mean over `invert_every` steps
follows.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import click
import torch

import hbpcompiler as hbp

from . import devices
from .clipping import CELLS, CLOCKS, given
from .networks import Problem
from .peers import Run
from .timing import Measured, interleaved, prepare

SIZES = {"3c3d": 128, "resnet18": 64}
"""The product with an inverse does not depend on the batch: of few samples it costs more than their gradient."""
RATE = 1e-6
"""So small that the network stays as it is."""


def adam(given: Problem) -> Run:
    model = copy.deepcopy(given.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def call() -> None:
        optimizer.zero_grad()
        given.loss(model(given.inputs), given.target).backward()
        optimizer.step()

    return Run(call, lambda value: {})


def at_step(optimizer: hbp.optim.KFAC, number: int, given: Problem) -> Run:
    """The optimizer's step of this number, again and again."""
    def call() -> None:
        optimizer.steps = number
        optimizer.step(given.inputs, given.target)

    return Run(call, lambda value: {})


def contestants(given: Problem, curvature: str, update_every: int, invert_every: int) -> dict[str, Run]:
    optimizer = hbp.optim.KFAC(copy.deepcopy(given.model), given.loss, lr=RATE, momentum=0.9, curvature=curvature,
                               update_every=update_every, invert_every=invert_every)
    optimizer.step(given.inputs, given.target)
    return {"Adam": adam(given), "gradient alone": at_step(optimizer, 1, given),
            "update": at_step(optimizer, update_every, given), "inverse": at_step(optimizer, 0, given)}


def mean_step(measured: dict[str, Measured], update_every: int, invert_every: int) -> float:
    """Seconds."""
    updates = invert_every // update_every
    return (measured["inverse"].median + (updates - 1) * measured["update"].median
            + (invert_every - updates) * measured["gradient alone"].median) / invert_every


@click.command()
@click.option("--networks", default="3c3d,resnet18", show_default=True, help=f"With commas, of {', '.join(CELLS)}.")
@click.option("--batch", type=int, default=None, help="Batch size of all networks. Default: each its own.")
@click.option("--curvature", default="kfac", show_default=True)
@click.option("--update-every", default=10, show_default=True)
@click.option("--invert-every", default=100, show_default=True)
@click.option("--rounds", default=7, show_default=True, help="Measurements of each kind of step, in turns.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds that one step may take.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--threads", default=2, show_default=True)
@devices.DEVICE
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less.")
@click.option("--json", "file", default="", help="Where to write all measurements.")
def main(networks: str, batch: int | None, curvature: str, update_every: int, invert_every: int, rounds: int,
         limit: float, patience: float, threads: int, device: str, clock: str, file: str) -> None:
    """Steps of KFAC in multiples of Adam's."""
    prepare(threads, device)
    found = {}
    for name in networks.split(","):
        size = batch or SIZES.get(name, 16)
        runs = contestants(given(name, size), curvature, update_every, invert_every)
        measured = interleaved(runs, rounds, limit, patience, clock=CLOCKS[clock], alternating=True)
        found[f"{name}:{size}"] = {kind: each.seconds for kind, each in measured.items()}
        base = measured["Adam"].median
        kinds = ", ".join(f"{kind} {each.median / base:.2f}" for kind, each in measured.items() if kind != "Adam")
        mean = mean_step(measured, update_every, invert_every) / base
        print(f"{name}:{size}, Adam {1000 * base:.1f} ms; in steps of Adam: {kinds}; mean {mean:.2f}", flush=True)
    if file:
        Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
