"""`python -m benchmarks.programs`: the programs that two versions of this library generate, one beside the other.

    python -m benchmarks.programs save before       # in a checkout of the one version
    python -m benchmarks.programs save after        # in a checkout of the other
    python -m benchmarks.programs race before after --memory

`save` writes a program for each row of `benchmarks.compare`'s table, planned with the default figures, so that what was
measured on this machine decides nothing. `race` runs the files alone: it compares all that they return, then times them
in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
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

from . import memory
from .cells import Cell, select
from .kept import arguments, caller, default_figures, keep, largest_difference, lengths, names, network_of, title
from .memory import MEBI, Peak
from .networks import NETWORKS, problem
from .peers import Run
from .timing import BUDGET, Clock, Measured, interleaved, prepare

ROUNDING = 1e-4
"""The largest difference in float32, relative to a tensor's largest entry, that counts as none."""
SIDES = ("before", "after")
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class Pair:
    """One row's two programs. Tuples and tables have a number for each of SIDES."""

    name: str
    lines: tuple[int, int]
    longest: tuple[int, int]
    difference: float
    where: str
    """The tensor that differs most."""
    measured: dict[str, Measured] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        return self.difference <= ROUNDING

    @property
    def ratio(self) -> Measured:
        """Time after over time before, round by round; no numbers if there are no times."""
        if not self.measured:
            return Measured()
        before, after = (self.measured[side].seconds for side in SIDES)
        return Measured([new / old for old, new in zip(before, after, strict=False)])

    @property
    def memory_ratio(self) -> float | None:
        """None if a peak is missing, or is less than a process can show."""
        before, after = (self.peaks[side].bytes if side in self.peaks else None for side in SIDES)
        return after / before if before is not None and after is not None and before >= MEBI else None

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio.median if self.ratio.seconds else None,
                "memory_ratio": self.memory_ratio}  # fmt: skip


def save_cell(cell: Cell, folder: Path) -> Path:
    """Keep one row's program; says where."""
    given = problem(cell.network, cell.batch)
    compiled = hbp.compile(given.model, given.loss, quantities=list(cell.quantities),
                           example_inputs=(given.inputs, given.target))
    return keep(folder, title(cell.network, cell.batch, "+".join(cell.quantities)), compiled, given)


def seeded(run: Run) -> Any:
    """The result of a call whose random draws are always the same."""
    torch.manual_seed(0)
    return run.call()


def compare(files: Sequence[Path], rounds: int, limit: float, patience: float, budget: float, clock: Clock) -> Pair:
    """The numbers, and if they agree the times: before, after, after, before, before, ..."""
    before, after = (lengths(file.read_text(encoding="utf-8")) for file in files)
    given = [arguments(file) for file in files]
    if largest_difference(*given)[0] == 0:
        given[1] = given[0]  # where tensors happen to lie makes a few percent
    calls = [caller(*pair) for pair in zip(files, given, strict=True)]
    runs = {side: Run(call, lambda result: {}) for side, call in zip(SIDES, calls, strict=True)}
    found, where = largest_difference(*(seeded(run) for run in runs.values()))
    pair = Pair(files[0].stem, (before[0], after[0]), (before[1], after[1]), found, where)
    if pair.agrees and rounds:
        pair.measured = interleaved(runs, rounds, limit, patience, budget=budget, clock=clock, alternating=True)
    return pair


def measure_memory(pair: Pair, files: Sequence[Path], threads: int, limit: float) -> None:
    """Each program in a fresh process."""
    for side, file in zip(SIDES, files, strict=True):
        pair.peaks[side] = memory.printed("benchmarks.programs", ["peak", str(file), "--threads", str(threads)], limit)


def time_texts(pair: Pair) -> list[str]:
    """'12.3', '1.010 (0.995-1.020)'; '?' where other processes disturbed most measurements."""
    ratio = pair.ratio
    if not ratio.seconds:
        return [next((each.failure for each in pair.measured.values() if each.failure), "-"), "-"]
    low, high = ratio.quartiles
    disturbed = any(2 * each.disturbed > len(each.seconds) for each in pair.measured.values())
    return [f"{1e3 * pair.measured['before'].median:.3g}",
            f"{ratio.median:.3f} ({low:.3f}-{high:.3f})" + " ?" * disturbed]  # fmt: skip


def memory_texts(pair: Pair) -> list[str]:
    """Of each side, or why there is no number; and the ratio."""
    texts = []
    for side in SIDES:
        found = pair.peaks.get(side, Peak(None, "-"))
        texts.append(found.failure if found.bytes is None else f"{found.bytes / MEBI:.1f}")
    return [*texts, "-" if pair.memory_ratio is None else f"{pair.memory_ratio:.3f}"]


def show(console: Console, pairs: Sequence[Pair], with_memory: bool) -> None:
    columns = ["program", "lines", "after", "longest line", "after", "ms", "after / before"]
    columns += ["MiB", "after", "after / before"] if with_memory else []
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in [*columns, "difference"]:
        table.add_column(column, justify="left" if column == "program" else "right", no_wrap=True)
    for pair in pairs:
        texts = [*map(str, pair.lines), *map(str, pair.longest), *time_texts(pair)]
        texts += memory_texts(pair) if with_memory else []
        table.add_row(pair.name, *texts, f"{pair.difference:.1e}" + " ≠" * (not pair.agrees))
    console.print(table)
    console.print()
    for side, number in zip(SIDES, (0, 1), strict=True):
        lines, longest = sum(pair.lines[number] for pair in pairs), max(pair.longest[number] for pair in pairs)
        console.print(f"{side}: {lines:,} lines in {len(pairs)} programs, the longest has {longest:,} characters")
    show_ratios(console, "time", {pair.name: pair.ratio.median for pair in pairs if pair.ratio.seconds})
    show_ratios(console, "peak memory", {pair.name: pair.memory_ratio for pair in pairs if pair.memory_ratio})
    for pair in pairs:
        if not pair.agrees:
            console.print(f"{pair.name} differs by {pair.difference:.2g}: {pair.where}", markup=False)


def show_ratios(console: Console, what: str, ratios: dict[str, float]) -> None:
    if not ratios:
        return
    least, most = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    console.print(f"{what}, after / before: geometric mean {statistics.geometric_mean(ratios.values()):.3f}, from "
                  f"{ratios[least]:.3f} ({least}) to {ratios[most]:.3f} ({most})")


@click.group()
def main() -> None:
    """Keep the benchmark's generated programs, and compare those of two versions."""
    warnings.simplefilter("ignore")


THREADS = click.option("--threads", default=os.cpu_count() or 1, show_default=True, help="Threads of torch.")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--networks", default="", help=f"Comma-separated: {', '.join(NETWORKS)}. The table's, if not given.")
@click.option("--quantities", default="", help="Comma-separated; a+b is one program for both.")
@click.option("--batch", default="", help="Comma-separated batch sizes, instead of the table's.")
@THREADS
def save(folder: Path, networks: str, quantities: str, batch: str, threads: int) -> None:
    """Write the programs, and what they run on, to FOLDER."""
    prepare(threads)
    split = [text.split(",") if text else [] for text in (networks, quantities, batch)]
    if unknown := set(split[0]) - set(NETWORKS):
        raise click.BadParameter(f"unknown networks: {', '.join(sorted(unknown))}")
    with default_figures():
        for cell in select(split[0], split[1], [int(size) for size in split[2]], False):
            print(save_cell(cell, folder), file=sys.stderr)


@main.command(context_settings={"show_default": True})
@click.argument("before", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("after", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--networks", default="", help="Comma-separated. All, if not given.")
@click.option("--rounds", default=7, help="Measurements of each program; slow ones get fewer. 0: compare only numbers.")
@click.option("--patience", default=20.0, help="Seconds per program to wait for other processes to be quiet.")
@click.option("--budget", default=BUDGET, help="Seconds that each program may spend in its rounds.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", help="The processor's, with one thread, is "
              "what to ask for on a busy machine.")
@click.option("--memory", "with_memory", is_flag=True, help="Peak memory of a call too, in fresh processes.")
@click.option("--limit", default=300.0, help="Seconds that a first call, or such a process, may take.")
@THREADS
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all measurements there.")
def race(before: Path, after: Path, networks: str, rounds: int, patience: float, budget: float, clock: str,
         with_memory: bool, limit: float, threads: int, json_file: Path | None) -> None:
    """Compare the programs that are in both folders. Fails if numbers differ by more than rounding."""
    prepare(threads)
    console, progress = Console(width=180, highlight=False), Console(stderr=True, highlight=False)
    chosen = set(names(before)) | set(names(after))
    if networks:
        chosen = {name for name in chosen if network_of(name) in networks.split(",")}
    both = chosen & set(names(before)) & set(names(after))
    if not both:
        raise click.BadParameter("no program is in both folders")
    versions = f"torch {torch.__version__}, {threads} threads, float32, {clock} clock"
    console.print(f"Medians (quartiles) of {rounds} rounds; {versions}\n")
    pairs = []
    for name in sorted(both):
        files = [folder / f"{name}.py" for folder in (before, after)]
        pair = compare(files, rounds, limit, patience, budget, CLOCKS[clock])
        if with_memory:
            measure_memory(pair, files, threads, limit)
        pairs.append(pair)
        progress.print(f"{name}: {', '.join(time_texts(pair))}", markup=False, soft_wrap=True)
        if json_file is not None:
            record = {"versions": versions, "programs": [each.record() for each in pairs]}
            json_file.write_text(json.dumps(record, indent=1), encoding="utf-8")
    show(console, pairs, with_memory)
    if lonely := sorted(chosen - both):
        console.print(f"in one folder only: {', '.join(lonely)}")
    if wrong := [pair.name for pair in pairs if not pair.agrees]:
        raise click.ClickException(f"{len(wrong)} of {len(pairs)} programs compute other numbers")


@main.command(hidden=True)
@click.argument("file", type=click.Path(path_type=Path))
@THREADS
def peak(file: Path, threads: int) -> None:
    """Print the bytes by which this process grows during a call of the program: what `race --memory` starts."""
    torch.set_num_threads(threads)
    call = caller(file, arguments(file))
    call()
    print(json.dumps(memory.growth(call)))


if __name__ == "__main__":
    main()
