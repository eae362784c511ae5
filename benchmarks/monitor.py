"""`python -m benchmarks.monitor`: what `hbp.Monitor` adds to training, as a multiple of training without it.

Four things are timed in turns: a training step (zero_grad, forward, backward, SGD's step); the monitor at a step that
is due, at the one after it, where alpha ends, and at one that is both, as every step is with every=1. From these follow
the multiples for each interval. `one pass` is `monitor.step` in place of forward and backward, on every step.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import torch

import hbpcompiler as hbp

from .clipping import CELLS, CLOCKS, given
from .networks import Problem
from .peers import Run
from .timing import Measured, interleaved, prepare

SIZES = {"3c3d": 64, "resnet18": 16}
BATCH = 128
INTERVALS = (1, 16, 64)
RATE = 1e-3
LONE = 4.0
"""Seconds of a step that is measured once."""
WITHOUT = {"economy-h": [name for name in hbp.monitor.SETS["economy"] if name != "grad_hist_1d"]}
"""Economy without its histogram."""
IDLE = 20_000
"""Steps that are not due, to time one."""


def watching(given: Problem, track: str) -> hbp.Monitor:
    """A monitor in the middle of a run: one step has been tracked, and waits for its end."""
    model = copy.deepcopy(given.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    monitor = hbp.Monitor(model, given.loss, optimizer, WITHOUT.get(track, track), 2)
    monitor.observe(given.inputs, given.target)
    given.loss(model(given.inputs), given.target).backward()
    optimizer.step()
    return monitor


def contestants(given: Problem, track: str) -> dict[str, Run]:
    monitor = watching(given, track)
    pending = monitor._watching.pending

    def at(step: int, waits: bool, call: Callable[..., object]) -> Run:
        def run() -> None:
            monitor.steps, monitor._watching.pending = step, pending if waits else None
            call(given.inputs, given.target)

        return Run(run, lambda value: {})

    runs = {"due": at(2, False, monitor.observe), "after": at(1, True, monitor.observe),
            "both": at(2, True, monitor.observe), "one pass": at(2, True, monitor.step)}
    for kind in ("after", "both"):
        runs[kind].call()  # which makes the programs that there are not yet
    return runs


def training(given: Problem) -> Run:
    model = copy.deepcopy(given.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def call() -> None:
        optimizer.zero_grad()
        given.loss(model(given.inputs), given.target).backward()
        optimizer.step()

    return Run(call, lambda value: {})


def gradient_alone(given: Problem) -> Run:
    model = copy.deepcopy(given.model)

    def call() -> None:
        given.loss(model(given.inputs), given.target).backward()

    return Run(call, lambda value: {})


def idle(given: Problem) -> float:
    """Seconds of a step that is not due."""
    monitor = hbp.Monitor(given.model, given.loss, None, "loss", 10**9)
    monitor.steps = 1
    began = time.perf_counter()
    for _ in range(IDLE):
        monitor.observe(given.inputs, given.target)
    return (time.perf_counter() - began) / IDLE


def multiples(measured: dict[str, Measured], track: str, off: float) -> dict[str, float]:
    """Of a training step, by interval; and with forward and backward replaced."""
    step = measured["training"].median
    due, after, both, one = (measured[f"{track}: {kind}"].median for kind in ("due", "after", "both", "one pass"))
    found = {}
    for interval in INTERVALS:
        added = both if interval == 1 else (due + after + (interval - 2) * off) / interval
        found[f"every {interval}"] = 1 + added / step
    found["one pass"] = (step - measured["gradient"].median + one) / step
    return found


@click.command()
@click.option("--networks", default="logreg,mlp,3c3d,resnet18", show_default=True,
              help=f"With commas, of {', '.join(CELLS)}.")
@click.option("--track", default="economy-h,economy,business,full", show_default=True,
              help="Sets, with commas; economy-h: economy without its histogram.")
@click.option("--batch", type=int, default=None, help="Batch size of all networks. Default: each its own.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of each, in turns.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds that one step may take.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--budget", default=15.0, show_default=True, help="Seconds for each measured kind of step.")
@click.option("--threads", default=2, show_default=True)
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less.")
@click.option("--json", "file", default="", help="Where to write all measurements.")
def main(networks: str, track: str, batch: int | None, rounds: int, limit: float, patience: float, budget: float,
         threads: int, clock: str, file: str) -> None:
    """Training with a monitor in multiples of training without one."""
    prepare(threads)
    warnings.simplefilter("ignore", hbp.MonitorWarning)
    found = {}
    for name in networks.split(","):
        size = batch or SIZES.get(name, BATCH)
        problem = given(name, size)
        runs = {"training": training(problem), "gradient": gradient_alone(problem)}
        for chosen in track.split(","):
            runs |= {f"{chosen}: {kind}": run for kind, run in contestants(problem, chosen).items()}
        measured = interleaved(runs, rounds, limit, patience, LONE, budget, CLOCKS[clock], alternating=True)
        off = idle(problem)
        base = measured["training"].median
        print(f"{name}:{size}, a training step {1000 * base:.1f} ms, one that is not due {1e6 * off:.1f} us more "
              f"({100 * off / base:.3f} %)", flush=True)
        rows = {}
        for chosen in track.split(","):
            rows[chosen] = multiples(measured, chosen, off)
            shown = ", ".join(f"{kind} {value:.2f}" for kind, value in rows[chosen].items())
            print(f"  {chosen}: {shown}", flush=True)
        found[f"{name}:{size}"] = {"seconds": {kind: each.seconds for kind, each in measured.items()}, "off": off,
                                   "multiples": rows}
    if file:
        Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
