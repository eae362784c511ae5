"""`python -m benchmarks.prediction`: the planner's predictions beside measurements, for programs, routes and memory.

Each cell of the benchmark is compiled, its time predicted (`Compiled.predicted_seconds`) and measured. At each
parameter the sets of routes that the planner had to choose from are raced, predicted and measured. What counts is
order: Spearman's rank correlation, and what the planner's first choice costs beside the fastest one. Absolute seconds
of the machine mean little alone: the plain gradient runs in the same rounds and is shown beside them.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import DEFAULT, Machine
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.tune.calibrate import calibrate, stopwatch
from hbpcompiler.compiler.tune.race import Race, near_ties

from . import memory
from .cells import Cell, select
from .compare import limit_memory
from .memory import MEBI, Peak
from .networks import NETWORKS, problem
from .peers import Run, gradient
from .timing import Measured, TooSlowError, interleaved, prepare, time_limit

CPU = torch.device("cpu")
CLOSE = 0.2
"""A predicted peak is close if it is off by no more than this share of the measured one."""
STARTING = 60.0
"""Seconds that a fresh process may take to import and compile, besides `--limit`."""


@dataclass
class Site:
    """One parameter's race: seconds of each set of routes."""

    parameter: str
    routes: list[str]
    predicted: list[float]
    measured: list[float]

    @property
    def correlation(self) -> float:
        return spearman(self.predicted, self.measured)

    @property
    def regret(self) -> float:
        """Time of the route predicted to be the fastest, as a multiple of the fastest one's."""
        return self.measured[self.predicted.index(min(self.predicted))] / min(self.measured)


@dataclass
class Found:
    """One cell: seconds, MiB and races, predicted and measured."""

    cell: Cell
    predicted: float
    call: Measured
    gradient: Measured
    predicted_memory: float
    sites: list[Site] = field(default_factory=list)
    peak: Peak | None = None
    remark: str = ""
    """Why there are not all races."""

    @property
    def measured(self) -> float | None:
        return self.call.median if self.call.seconds else None

    @property
    def memory_ratio(self) -> float | None:
        """Predicted over measured; None where nothing was measured, or no growth."""
        return self.predicted_memory * MEBI / self.peak.bytes if self.peak is not None and self.peak.bytes else None


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Correlation of the ranks; nan where there is no order to compare."""
    if len(set(left)) < 2 or len(set(right)) < 2:
        return float("nan")
    return statistics.correlation(ranks(left), ranks(right))


def predicted_seconds(compiled: hbp.Compiled, batch: int, machine: Machine) -> float:
    """Of a call, on a machine with these figures; `Compiled.predicted_seconds` has those of the plan."""
    built = compiled._current()
    return sum(ProgramCost(built.draft.graph, built.matched.graph, machine).seconds(batch).values())


def cell_found(cell: Cell, machine: Machine, rounds: int, within: float, limit: float, patience: float) -> Found:
    given = problem(cell.network, cell.batch)
    baseline = gradient(given)
    assert baseline is not None
    compiled = hbp.compile(given.model, given.loss, quantities=list(cell.quantities),
                           example_inputs=(given.inputs, given.target))
    runs = {"gradient": baseline, "ours": Run(lambda: compiled(given.inputs, given.target), lambda result: {})}
    times = interleaved(runs, rounds, limit, patience, lone=limit / 2, budget=limit / 2)
    found = Found(cell, predicted_seconds(compiled, cell.batch, machine), times["ours"], times["gradient"],
                  compiled.predicted_memory(cell.batch) / MEBI)
    try:
        with time_limit(limit):
            race_all(found, compiled, machine, rounds, within)
    except TooSlowError:  # the races that were over by then count
        found.remark = f"races: >{limit:g} s"
    except Exception as error:
        found.remark = f"races: {type(error).__name__}: {str(error)[:80]}"
    return found


def race_all(found: Found, compiled: hbp.Compiled, machine: Machine, rounds: int, within: float) -> None:
    """Every parameter's race, one after the other."""
    built, batch = compiled._current(), found.cell.batch
    race = Race(built.matched, built.draft.plan, batch, CPU, stopwatch(CPU))
    for step in built.draft.plan.closings() if within > 1 else []:
        runners = near_ties(step, batch, within)
        if len(runners) > 1 and step in built.draft.plan.steps:  # sites in chunk loops have no race of their own
            predicted = [sum(choice.cost.seconds(batch, machine) for choice in runner) for runner in runners]
            names = [" + ".join(choice.route.name for choice in runner) for runner in runners]
            found.sites.append(Site(step.parameter.key, names, predicted, race.seconds(step, runners, rounds)))


def show(console: Console, results: Sequence[Found]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("network:batch", "quantities", "gradient ms", "predicted ms", "measured ms", "ratio", "races",
                   "rank correlation", "regret", "predicted MiB", "measured MiB", "ratio"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("network:batch", "quantities") else "right")
    for found in results:
        kept = [site.correlation for site in found.sites if site.correlation == site.correlation]
        table.add_row(
            found.cell.title, found.cell.what, milliseconds(found.gradient), f"{1e3 * found.predicted:.3g}",
            milliseconds(found.call), f"{found.predicted / found.measured:.2f}" if found.measured else "-",
            str(len(found.sites)),
            f"{statistics.mean(kept):.2f}" if kept else "-",
            f"{statistics.mean(site.regret for site in found.sites):.2f}" if found.sites else "-",
            f"{found.predicted_memory:.3g}", peak_text(found.peak),
            "-" if found.memory_ratio is None else f"{found.memory_ratio:.2f}",
        )  # fmt: skip
    console.print(table)
    for found in results:
        if found.remark:
            console.print(f"{found.cell.title} {found.cell.what}: {found.remark}", style="dim", markup=False)
    for where, count, correlation in correlations(results):
        console.print(f"rank correlation of predicted and measured time, {where}, {count} cells: {correlation:.3f}")
    sites = [site for found in results for site in found.sites]
    if sites:
        first = sum(site.regret == 1 for site in sites)
        console.print(f"{len(sites)} races: rank correlation {mean_correlation(sites):.3f} on average, the predicted "
                      f"winner won {first}, and took {statistics.mean(site.regret for site in sites):.2f} times the "
                      "winner's time on average")
    for where, least in (("", 0), (" of a MiB or more", MEBI)):  # less than that is lost among a process's pages
        ratios = memory_ratios(results, least)
        if ratios:
            console.print(f"predicted over measured memory{where}: {min(ratios):.2f} to {max(ratios):.2f}, "
                          f"{close(ratios)} of {len(ratios)} cells within {CLOSE:.0%}")


def milliseconds(found: Measured) -> str:
    return f"{1e3 * found.median:.3g}" if found.seconds else found.failure


def peak_text(found: Peak | None) -> str:
    if found is None:
        return "-"
    return found.failure if found.bytes is None else f"{found.bytes / MEBI:.3g}"


def memory_ratios(results: Sequence[Found], least: int) -> list[float]:
    """Of the cells whose measured peak is so many bytes or more."""
    return [found.memory_ratio for found in results
            if found.memory_ratio is not None and found.peak is not None and (found.peak.bytes or 0) >= least]


def close(ratios: Sequence[float]) -> int:
    """How many are within CLOSE of one."""
    return sum(abs(ratio - 1) <= CLOSE for ratio in ratios)


def correlations(results: Sequence[Found]) -> list[tuple[str, int, float]]:
    """Where, how many cells, rank correlation of predicted and measured time: overall, then of each network."""
    timed = [(found.cell.network, found.predicted, found.measured) for found in results if found.measured]
    found = []
    for network in ["", *dict.fromkeys(network for network, _, _ in timed)]:
        own = [(predicted, actual) for name, predicted, actual in timed if network in ("", name)]
        correlation = spearman([predicted for predicted, _ in own], [actual for _, actual in own])
        if network == "" or not math.isnan(correlation):
            found.append((network or "overall", len(own), correlation))
    return found


def mean_correlation(sites: Sequence[Site]) -> float:
    kept = [site.correlation for site in sites if site.correlation == site.correlation]
    return statistics.mean(kept) if kept else float("nan")


def record(found: Found) -> dict[str, Any]:
    return {**asdict(found), "cell": [found.cell.network, found.cell.batch, list(found.cell.quantities)]}


@click.command(context_settings={"show_default": True})
@click.option("--networks", default="", help=f"Comma-separated: {', '.join(NETWORKS)}. All, if not given.")
@click.option("--quantities", default="", help="Comma-separated; a+b is one program for both.")
@click.option("--batch", default="", help="Comma-separated batch sizes, instead of the table's.")
@click.option("--quick", is_flag=True, help="A few small cells.")
@click.option("--rounds", default=7, help="Measurements of each program and of each route.")
@click.option("--within", default=4.0, help="Race routes predicted to take so many times the best one's time; 1: none.")
@click.option("--measured-figures/--default-figures", "tuned", default=False,
              help="Predict with this machine's figures, measured first, or with the default ones.")
@click.option("--limit", default=20.0, help="Seconds per cell for a call, for all its rounds, for all races.")
@click.option("--patience", default=10.0, help="Seconds per cell to wait for other processes to be quiet.")
@click.option("--memory", "with_memory", is_flag=True, help="Peak memory too, measured in fresh processes.")
@click.option("--threads", default=os.cpu_count() or 1, help="Threads of torch.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything there.")
def main(networks: str, quantities: str, batch: str, quick: bool, rounds: int, within: float, tuned: bool,
         limit: float, patience: float, with_memory: bool, threads: int, json_file: Path | None) -> None:
    """Predict and measure every cell of the benchmark, and print how well the orders agree."""
    warnings.simplefilter("ignore")
    prepare(threads)
    limit_memory()
    split = [text.split(",") if text else [] for text in (networks, quantities, batch)]
    if unknown := set(split[0]) - set(NETWORKS):
        raise click.BadParameter(f"unknown networks: {', '.join(sorted(unknown))}")
    machine = calibrate(CPU) if tuned else DEFAULT
    console = Console(width=160, highlight=False)
    progress = Console(stderr=True, highlight=False)
    console.print(f"{'measured' if tuned else 'default'} figures: {asdict(machine)}; {threads} threads\n")
    results: list[Found] = []
    for cell in select(split[0], split[1], [int(size) for size in split[2]], quick):
        found = cell_found(cell, machine, rounds, within, limit, patience)
        if with_memory and found.measured is not None:
            found.peak = memory.in_subprocess("ours", cell.network, cell.batch, cell.quantities, threads,
                                              STARTING + limit)
        results.append(found)
        progress.print(f"{cell.title} {cell.what}: predicted {1e3 * found.predicted:.3g} ms, measured "
                       f"{milliseconds(found.call)} ms", markup=False, soft_wrap=True)
        if json_file is not None:
            json_file.write_text(json.dumps([record(each) for each in results], indent=1), encoding="utf-8")
    show(console, results)


if __name__ == "__main__":
    main()
