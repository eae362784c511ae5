"""`python -m benchmarks.scale`: how the cost of exact diagonals grows with the batch, the width and the depth.

Beside each measured multiple of the gradient's time and each measured peak stands what the compiler itself predicts.
"""

from __future__ import annotations

import functools
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

import hbpcompiler as hbp
from hbpcompiler.compiler.cost.figures import DEFAULT, Machine
from hbpcompiler.compiler.tune.calibrate import calibrate

from . import memory
from .agreement import Referee
from .compare import limit_memory
from .growth import AXES, BASES, QUANTITIES, Growth, Point, Row, Sweep, growths, single_rows, sweeps
from .memory import MEBI
from .networks import problem
from .peers import Run, gradient, ours
from .prediction import CPU, predicted_seconds, spearman
from .timing import interleaved, prepare

LONE = 30.0
"""Seconds; a first call that takes longer is its only measurement."""


@dataclass(frozen=True)
class Conditions:
    """How to measure."""

    rounds: int
    limit: float
    patience: float
    threads: int
    with_memory: bool
    machine: Machine


@functools.lru_cache(maxsize=2)
def programs(network: str) -> Mapping[str, hbp.Compiled]:
    """For the gradient and each quantity. One program serves every batch size."""
    given = problem(network, 2)
    return {name: hbp.compile(given.model, given.loss, quantities=["grad" if name == "gradient" else name],
                              example_inputs=(given.inputs, given.target))
            for name in ("gradient", *QUANTITIES)}  # fmt: skip


def run(compiled: hbp.Compiled, point: Point) -> Run:
    given = problem(point.network, point.batch)
    return Run(lambda: compiled(given.inputs, given.target), lambda result: {})


def measure(point: Point, how: Conditions) -> Row:
    compiled = programs(point.network)
    baseline = gradient(problem(point.network, point.batch))
    assert baseline is not None
    runs = {"gradient": baseline, **{name: run(compiled[name], point) for name in QUANTITIES}}
    row = Row(point, interleaved(runs, how.rounds, how.limit, how.patience, LONE),
              {name: predicted_seconds(each, point.batch, how.machine) for name, each in compiled.items()},
              {name: compiled[name].predicted_memory(point.batch) for name in QUANTITIES})
    for name in QUANTITIES:
        if how.with_memory and row.seconds(name) is not None:
            allowed = 120 + 3 * how.limit  # imports and two compilations besides the call
            row.peaks[name] = memory.in_subprocess("ours", point.network, point.batch, [name], how.threads, allowed)
    return row


def measure_sweep(sweep: Sweep, how: Conditions, progress: Console) -> list[Row]:
    """Its rows in order of size. What follows a row that failed would take longer still."""
    rows: list[Row] = []
    for point in sweep.points:
        rows.append(measure(point, how))
        texts = ", ".join(f"{name} {multiple_text(rows[-1], name)}" for name in QUANTITIES)
        progress.print(f"{point.title}: {texts}", markup=False, soft_wrap=True)
        if sweep.axis and not rows[-1].complete:
            break
    return rows


def multiple_text(row: Row, name: str) -> str:
    """'12.3 (12.1-12.9)'; '~' one call, '?' a busy machine, or why there is no number."""
    found, ratio, whole = row.measured[name], row.multiple(name), row.seconds("gradient")
    if ratio is None or whole is None:
        return found.failure or "-"
    mark = " ?" if 2 * found.disturbed > len(found.seconds) else ""
    if len(found.seconds) == 1:
        return f"~{ratio:.3g}{mark}"
    low, high = (quartile / whole for quartile in found.quartiles)
    return f"{ratio:.3g} ({low:.3g}-{high:.3g}){mark}"


def peak_text(row: Row, name: str) -> str:
    found = row.peaks.get(name)
    if found is None:
        return "-"
    return found.failure if found.bytes is None else f"{found.bytes / MEBI:.3g}"


def exponent_text(found: Growth, axis: str) -> str:
    """'time ~ batch^0.98, predicted ^1.00 (last two sizes ^0.99, ^1.00)'."""
    if math.isnan(found.measured):
        return f"{found.what}: too few sizes"
    return (f"{found.what} ~ {axis}^{found.measured:.2f}, predicted ^{found.predicted:.2f} (last two of "
            f"{found.points} sizes: ^{found.last_measured:.2f}, ^{found.last_predicted:.2f})")


def show(console: Console, sweep: Sweep, rows: Sequence[Row]) -> None:
    table = Table(title=sweep.title, box=None, title_justify="left", padding=(0, 2, 0, 0))
    table.add_column(sweep.axis or "network:batch", justify="right" if sweep.axis else "left")
    table.add_column("gradient ms", justify="right")
    for name in QUANTITIES:
        for column in (f"{name} / gradient", "predicted", "peak MiB", "predicted"):
            table.add_column(column, justify="right")
    for row in rows:
        cells = [str(row.point.size) if sweep.axis else row.point.title]
        whole = row.seconds("gradient")
        cells.append(row.measured["gradient"].failure if whole is None else f"{1e3 * whole:.3g}")
        for name in QUANTITIES:
            cells += [multiple_text(row, name), f"{row.predicted_multiple(name):.3g}", peak_text(row, name),
                      f"{row.predicted_bytes[name] / MEBI:.3g}"]
        table.add_row(*cells)
    console.print(table)
    if skipped := sweep.points[len(rows) :]:
        sizes = ", ".join(str(point.size) for point in skipped)
        console.print(f"not run, after the row that failed: {sweep.axis} {sizes}", style="dim")
    for name in QUANTITIES if sweep.axis else ():
        for found in [each for each in growths(rows, name) if each.points]:
            console.print(f"{name}: {exponent_text(found, sweep.axis)}", markup=False)
    console.print()


def show_agreement(console: Console, rows: Sequence[Row]) -> None:
    """How well predictions order and size what was measured, over all sweeps."""
    times = [(row.predicted_multiple(name), found) for row in rows for name in QUANTITIES
             if (found := row.multiple(name)) is not None]  # fmt: skip
    peaks = [(row.predicted_bytes[name] / found, found) for row in rows for name in QUANTITIES
             if (found := row.peak(name)) and found > MEBI]  # fmt: skip
    if times:
        ratios = [expected / found for expected, found in times]
        order = spearman(*map(list, zip(*times, strict=True)))
        console.print(f"predicted over measured multiple: {min(ratios):.2f} to {max(ratios):.2f}, "
                      f"rank correlation {order:.3f} over {len(times)}")
    if peaks:
        console.print(f"predicted over measured memory above 1 MiB: {min(peaks)[0]:.2f} to {max(peaks)[0]:.2f}")


def check(network: str) -> str:
    """What is wrong with the numbers of one network, in float64 against double backward."""
    found = Referee(network, 1).error(ours, "diag_h")
    return "" if found is None or found[0] <= found[1] else f"{network}: diag_h differs from autograd by {found[0]:.2g}"


@click.command(context_settings={"show_default": True})
@click.option("--families", default="", help=f"Comma-separated: {', '.join(BASES)}. All, if not given.")
@click.option("--axes", default="", help=f"Comma-separated: {', '.join(AXES)}. All, if not given.")
@click.option("--sizes", default=99, help="So many sizes of each sweep at most, from the smallest.")
@click.option("--long", "long_rows", is_flag=True, help="All-CNN-C and 3C3D instead of sweeps: some minutes.")
@click.option("--long-batch", default=1, help="Batch size of All-CNN-C.")
@click.option("--smooth", type=click.Choice(["sigmoid", "gelu"]), default="sigmoid", help="All-CNN-C's activations.")
@click.option("--rounds", default=7, help="Measurements of each program; slow ones get fewer.")
@click.option("--limit", default=60.0, help="Seconds; a call that takes longer ends its sweep.")
@click.option("--patience", default=20.0, help="Seconds per row to wait for other processes to be quiet.")
@click.option("--check/--no-check", "checked", default=True, help="Compare each sweep's first network with autograd.")
@click.option("--memory/--no-memory", "with_memory", default=True, help="Peak memory too, in fresh processes.")
@click.option("--measured-figures/--default-figures", "tuned", default=False,
              help="Predict with this machine's figures, measured first, or with the default ones.")
@click.option("--threads", default=os.cpu_count() or 1, help="Threads of torch.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all measurements there.")
@click.option("--figure", "figure_file", type=click.Path(path_type=Path), help="Draw the curves there.")
def main(families: str, axes: str, sizes: int, long_rows: bool, long_batch: int, smooth: str, rounds: int,
         limit: float, patience: float, checked: bool, with_memory: bool, tuned: bool, threads: int,
         json_file: Path | None, figure_file: Path | None) -> None:
    """Measure how diag_h and diag_ggn grow, as multiples of the plain gradient in the same rounds."""
    warnings.simplefilter("ignore")
    prepare(threads)
    limit_memory()
    chosen = families.split(",") if families else list(BASES), axes.split(",") if axes else list(AXES)
    for asked, known in zip(chosen, (list(BASES), list(AXES)), strict=True):
        if unknown := set(asked) - set(known):
            raise click.BadParameter(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    how = Conditions(rounds, limit, patience, threads, with_memory, calibrate(CPU) if tuned else DEFAULT)
    console, progress = Console(width=180, highlight=False), Console(stderr=True, highlight=False)
    console.print(f"Multiples of the plain gradient's time, medians (quartiles) of {rounds} rounds; torch "
                  f"{torch.__version__}, {threads} threads, float32; {'measured' if tuned else 'default'} figures\n")
    found: list[tuple[Sweep, list[Row]]] = []
    for sweep in [single_rows(smooth, long_batch)] if long_rows else sweeps(*chosen, sizes):
        if checked and sweep.axis and (wrong := check(sweep.points[0].network)):
            console.print(f"{sweep.title}: not timed, {wrong}\n", markup=False)
            continue
        found.append((sweep, measure_sweep(sweep, how, progress)))
        show(console, *found[-1])
        if json_file is not None:
            record = {"conditions": asdict(how),
                      "sweeps": [{"title": each.title, "axis": each.axis, "rows": [row.record() for row in rows],
                                  "growth": {name: [asdict(one) for one in growths(rows, name)] for name in QUANTITIES}
                                  if each.axis else {}} for each, rows in found]}  # fmt: skip
            json_file.write_text(json.dumps(record, indent=1), encoding="utf-8")
    show_agreement(console, [row for _, rows in found for row in rows])
    if figure_file is not None and not long_rows:
        from .scale_figure import draw

        draw(found, figure_file)


if __name__ == "__main__":
    main()
