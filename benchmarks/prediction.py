"""`python -m benchmarks.prediction`: the planner's predictions beside measurements, for programs, routes and memory.

Each cell of the benchmark is compiled, its time predicted (`Compiled.predicted_seconds`) and measured. At each
parameter the sets of routes that the planner had to choose from are raced, predicted and measured. What counts is
order: Spearman's rank correlation, and what the planner's first choice costs beside the fastest one.
"""

from __future__ import annotations

import json
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
from hbpcompiler.autotune import Race, near_ties
from hbpcompiler.calibrate import calibrate, stopwatch
from hbpcompiler.cost import DEFAULT, Machine
from hbpcompiler.program_cost import ProgramCost

from . import memory
from .cells import Cell, select
from .compare import MEBI, limit_memory
from .networks import NETWORKS, Problem, problem
from .peers import Run
from .timing import Neighbours, once, undisturbed

CPU = torch.device("cpu")


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
    measured: float
    sites: list[Site] = field(default_factory=list)
    predicted_memory: float = 0.0
    measured_memory: float | None = None


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Correlation of the ranks; nan where there is no order to compare."""
    if len(set(left)) < 2 or len(set(right)) < 2:
        return float("nan")
    return statistics.correlation(ranks(left), ranks(right))


def cell_found(cell: Cell, machine: Machine, rounds: int, within: float, patience: float) -> Found:
    given = problem(cell.network, cell.batch)
    compiled = hbp.compile(given.model, given.loss, quantities=list(cell.quantities),
                           example_inputs=(given.inputs, given.target))
    built = compiled._current()
    cost = ProgramCost(built.draft.graph, built.graph, machine)
    found = Found(cell, sum(cost.seconds(cell.batch).values()), measured(compiled, given, rounds, patience))
    found.predicted_memory = compiled.predicted_memory(cell.batch) / MEBI
    race = Race(built.graph, built.rules, built.draft.plan, cell.batch, CPU, stopwatch(CPU))
    for step in built.draft.plan.closings() if within > 1 else []:
        runners = near_ties(step, cell.batch, within)
        if len(runners) > 1 and step in built.draft.plan.steps:  # sites in chunk loops have no race of their own
            predicted = [sum(choice.cost.seconds(cell.batch, machine) for choice in runner) for runner in runners]
            names = [" + ".join(choice.route.name for choice in runner) for runner in runners]
            found.sites.append(Site(step.parameter.key, names, predicted, race.seconds(step, runners, rounds)))
    return found


def measured(compiled: hbp.Compiled, given: Problem, rounds: int, patience: float) -> float:
    """Median seconds of a call."""
    run, neighbours = Run(lambda: compiled(given.inputs, given.target), lambda result: {}), Neighbours(patience)
    warm = min(once(run), once(run))
    repeats = max(1, int(0.05 / warm))
    return statistics.median(undisturbed(run, repeats, neighbours)[0] for _ in range(rounds))


def show(console: Console, results: Sequence[Found]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("network:batch", "quantities", "predicted ms", "measured ms", "ratio", "races", "rank correlation",
                   "regret", "predicted MiB", "measured MiB"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("network:batch", "quantities") else "right")
    for found in results:
        kept = [site.correlation for site in found.sites if site.correlation == site.correlation]
        table.add_row(
            found.cell.title, found.cell.what, f"{1e3 * found.predicted:.3g}", f"{1e3 * found.measured:.3g}",
            f"{found.predicted / found.measured:.2f}", str(len(found.sites)),
            f"{statistics.mean(kept):.2f}" if kept else "-",
            f"{statistics.mean(site.regret for site in found.sites):.2f}" if found.sites else "-",
            f"{found.predicted_memory:.1f}", "-" if found.measured_memory is None else f"{found.measured_memory:.1f}",
        )  # fmt: skip
    console.print(table)
    predicted, actual = [found.predicted for found in results], [found.measured for found in results]
    console.print(f"\nrank correlation of predicted and measured time over {len(results)} cells: "
                  f"{spearman(predicted, actual):.3f}")
    sites = [site for found in results for site in found.sites]
    if sites:
        first = sum(site.regret == 1 for site in sites)
        console.print(f"{len(sites)} races: rank correlation {mean_correlation(sites):.3f} on average, the predicted "
                      f"winner won {first}, and took {statistics.mean(site.regret for site in sites):.2f} times the "
                      "winner's time on average")
    ratios = [found.predicted_memory / found.measured_memory for found in results if found.measured_memory]
    if ratios:
        console.print(f"predicted over measured memory: {min(ratios):.2f} to {max(ratios):.2f}")


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
@click.option("--patience", default=60.0, help="Seconds per cell to wait for other processes to be quiet.")
@click.option("--memory", "with_memory", is_flag=True, help="Peak memory too, measured in fresh processes.")
@click.option("--threads", default=os.cpu_count() or 1, help="Threads of torch.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything there.")
def main(networks: str, quantities: str, batch: str, quick: bool, rounds: int, within: float, tuned: bool,
         patience: float, with_memory: bool, threads: int, json_file: Path | None) -> None:
    """Predict and measure every cell of the benchmark, and print how well the orders agree."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
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
        found = cell_found(cell, machine, rounds, within, patience)
        if with_memory:
            peak = memory.in_subprocess("ours", cell.network, cell.batch, cell.quantities, threads, 300)
            found.measured_memory = None if peak is None else peak / MEBI
        results.append(found)
        progress.print(f"{cell.title} {cell.what}: predicted {1e3 * found.predicted:.3g} ms, measured "
                       f"{1e3 * found.measured:.3g} ms", markup=False, soft_wrap=True)
        if json_file is not None:
            json_file.write_text(json.dumps([record(each) for each in results], indent=1), encoding="utf-8")
    show(console, results)


if __name__ == "__main__":
    main()
