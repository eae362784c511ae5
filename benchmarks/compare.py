"""`python -m benchmarks.compare`: our programs beside the peers, as multiples of the plain gradient's time."""

from __future__ import annotations

import json
import os
import resource
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import hbpcompiler

from . import devices, memory
from .agreement import TOLERANCE, Referee
from .cells import GROUPS, Cell, select
from .memory import MEBI
from .networks import NETWORKS, problem
from .peers import BACKENDS, PEERS, Contestant, Run, contestants, gradient, our_name
from .timing import Measured, TooSlowError, interleaved, prepare, time_limit

OURS = our_name("python")


@dataclass
class Result:
    """A cell, measured. `remarks`: why a contestant's numbers or time are missing or other than ours."""

    cell: Cell
    gradient: Measured
    others: dict[str, Measured] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    mebibytes: dict[str, float] = field(default_factory=dict)
    memory_remarks: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        found = self.others.get(name)
        return found.median / self.gradient.median if found is not None and found.seconds else None

    def text(self, name: str) -> str:
        """What the table shows: '1.52 (1.49-1.60)'; '~' one call, '≠' other numbers, '?' a busy machine."""
        ratio = self.ratio(name)
        if ratio is None:
            found = self.others.get(name)
            return found.failure if found is not None and found.failure.startswith(">") else "-"
        found = self.others[name]
        if len(found.seconds) == 1:
            text = f"~{ratio:.3g}"
        else:
            low, high = (quartile / self.gradient.median for quartile in found.quartiles)
            text = f"{ratio:.3g} ({low:.3g}-{high:.3g})"
        marks = ("≠" if name in self.remarks else "") + ("?" if 2 * found.disturbed > len(found.seconds) else "")
        return f"{text} {marks}".strip()

    def record(self) -> dict[str, Any]:
        cell = self.cell
        seconds = {"gradient": self.gradient.seconds, **{name: m.seconds for name, m in self.others.items()}}
        return {"network": cell.network, "batch": cell.batch, "quantities": list(cell.quantities), "reach": cell.reach,
                "seconds": seconds, "ratios": {name: self.ratio(name) for name in self.others},
                "remarks": {**{n: m.failure for n, m in self.others.items() if m.failure}, **self.remarks},
                "peak_MiB": self.mebibytes, "memory_remarks": self.memory_remarks}  # fmt: skip


def said(error: Exception) -> str:
    """The error's type and the beginning of its message: compilers say a page."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def check(cell: Cell, referee: Referee, everyone: dict[str, Contestant], limit: float) -> dict[str, str]:
    """What is wrong with each contestant's numbers on a small batch in float64."""
    remarks: dict[str, str] = {}
    for name, contestant in everyone.items():
        for quantity in cell.quantities:
            try:
                with time_limit(4 * limit):
                    found = referee.error(contestant, quantity, exactly=name in PEERS)
                    if found is None and name not in PEERS and "BackPACK" in everyone:
                        found = referee.between(contestant, everyone["BackPACK"], quantity), TOLERANCE
            except TooSlowError:
                remarks[name] = f"{quantity}: not checked, too slow"
                continue
            except Exception as error:
                remarks[name] = f"{quantity}: {said(error)}"
                continue
            if found is not None and not found[0] <= found[1]:
                remarks[name] = f"{quantity}: differs from autograd by {found[0]:.2g}"
    return remarks


def able(everyone: dict[str, Contestant], cell: Cell, size: int) -> dict[str, Contestant]:
    """Those who know the cell's quantities. Ours always does, even where compiling fails: that is then reported."""
    given = problem(cell.network, size)
    return {
        name: contestant
        for name, contestant in everyone.items()
        if name not in PEERS or (name not in cell.skip and contestant(given, cell.quantities, 1) is not None)
    }


def measure(cell: Cell, referee: Referee | None, everyone: dict[str, Contestant], rounds: int, limit: float,
            patience: float) -> Result:
    everyone = able(everyone, cell, 2)
    remarks = check(cell, referee, everyone, limit) if referee is not None else {}
    given = problem(cell.network, cell.batch)
    baseline = gradient(given)
    assert baseline is not None
    runs: dict[str, Run] = {"gradient": baseline}
    measured: dict[str, Measured] = {}
    for name, contestant in everyone.items():
        if name not in PEERS and name in remarks:
            measured[name] = Measured(failure=remarks[name])  # wrong numbers are not worth a timing
            continue
        try:
            run = contestant(given, cell.quantities, 1)
            assert run is not None
            runs[name] = run
        except Exception as error:
            measured[name] = Measured(failure=said(error))
    measured |= interleaved(runs, rounds, limit, patience)
    return Result(cell, measured.pop("gradient"), measured, remarks)


def measure_memory(result: Result, names: Sequence[str], threads: int, limit: float, device: str) -> None:
    cell = result.cell
    for name in ["gradient", *names]:
        if name == "gradient" or result.ratio(name) is not None:
            found = memory.in_subprocess(name, cell.network, cell.batch, cell.quantities, threads, 4 * limit, device)
            if found.bytes is None:
                result.memory_remarks[name] = found.failure
            else:
                result.mebibytes[name] = found.bytes / MEBI


def above_best_peer(results: Sequence[Result]) -> list[str]:
    """Rows in which our peak memory is above the best peer's, those with the largest excess first.

    A peer whose numbers differ from autograd counts too, with its mark: it may hold less because it computes less.
    """
    found: list[tuple[float, str]] = []
    for result in results:
        theirs = [(mebibytes, name) for name, mebibytes in result.mebibytes.items() if name in PEERS]
        own = result.mebibytes.get(OURS)
        if own is None or not theirs:
            continue
        least, name = min(theirs)
        if own > least:
            factor = f", {own / least:.2f} times" if least > 0 else ""
            mark = " ≠" if name in result.remarks else ""
            found.append((own - least, f"{result.cell.title} {result.cell.what}: {own:.1f} MiB, {name}{mark} "
                                       f"{least:.1f} MiB (+{own - least:.1f} MiB{factor})"))
    return [text for _, text in sorted(found, reverse=True)]


def show(console: Console, results: Sequence[Result], names: Sequence[str]) -> None:
    for group in GROUPS:
        chosen = [result for result in results if result.cell.group == group]
        if not chosen:
            continue
        table = Table(title=group, box=None, title_justify="left", padding=(0, 2, 0, 0))
        for column in ("network:batch", "quantities", "gradient ms", *names, "reach"):
            table.add_column(column, justify="left" if column in ("network:batch", "quantities") else "right")
        for result in chosen:
            reach = "" if result.cell.reach is None else f"{result.cell.reach:g}"
            table.add_row(result.cell.title, result.cell.what, f"{1e3 * result.gradient.median:.3g}",
                          *(result.text(name) for name in names), reach)
            if result.mebibytes:
                peaks = (f"{result.mebibytes[name]:.1f}" if name in result.mebibytes else "" for name in
                         ("gradient", *names))
                table.add_row("", "  peak MiB", *peaks, "", style="dim")
        console.print(table)
        console.print()
    for result in results:
        notes = {**{n: m.failure for n, m in result.others.items() if m.failure}, **result.remarks}
        for name, note in notes.items():
            console.print(f"{result.cell.title} {result.cell.what}, {name}: {note}", style="dim", markup=False)
        for name, note in result.memory_remarks.items():
            console.print(f"{result.cell.title} {result.cell.what}, {name}, peak memory: {note}", style="dim",
                          markup=False)
    show_memory(console, results)


def show_memory(console: Console, results: Sequence[Result]) -> None:
    """The summary at the end: where our peak is above the best peer's."""
    compared = sum(OURS in result.mebibytes and any(name in PEERS for name in result.mebibytes) for result in results)
    if not compared:
        return
    above = above_best_peer(results)
    console.print(f"\nOur peak memory is above the best peer's in {len(above)} of {compared} rows"
                  f"{':' if above else '.'}")
    for line in above:
        console.print(f"  {line}", markup=False)


def limit_memory(share: float = 0.9) -> None:
    """Asking for more than the machine has must fail, not swap or be killed."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (int(share * whole), resource.RLIM_INFINITY))


@click.command(context_settings={"show_default": True})
@click.option("--networks", default="", help=f"Comma-separated: {', '.join(NETWORKS)}. All, if not given.")
@click.option("--quantities", default="", help="Comma-separated; a+b is one program for both.")
@click.option("--batch", default="", help="Comma-separated batch sizes, instead of the table's.")
@click.option("--quick", is_flag=True, help="A few small cells, in a minute or two.")
@click.option("--rounds", default=9, help="Measurements per contestant; slow ones get fewer.")
@click.option("--limit", default=60.0, help="Seconds; a contestant whose warm-up takes longer is left out.")
@click.option("--patience", default=60.0, help="Seconds per cell to wait for other processes to be quiet.")
@click.option("--peers/--no-peers", default=True, help="BackPACK, torch.func and curvlinops beside us.")
@click.option("--backends", default="python", help=f"Ours, comma-separated: {', '.join(BACKENDS)}.")
@click.option("--check/--no-check", "checked", default=True, help="Compare the numbers with autograd first.")
@click.option("--threads", default=os.cpu_count() or 1, help="Threads of torch.")
@devices.DEVICE
@click.option("--memory", "with_memory", is_flag=True, help="Peak memory of a call too, in fresh processes.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all measurements there.")
@click.option("--figure", "figure_file", type=click.Path(path_type=Path), help="Draw the table there.")
def main(networks: str, quantities: str, batch: str, quick: bool, rounds: int, limit: float, patience: float,
         peers: bool, backends: str, checked: bool, threads: int, device: str, with_memory: bool,
         json_file: Path | None, figure_file: Path | None) -> None:
    """Time every cell: gradient, ours, peers, gradient, ours, ... and print medians as multiples of the gradient's."""
    warnings.simplefilter("ignore")
    prepare(threads, device)
    if not devices.on_cuda():  # which reserves addresses beyond any memory
        limit_memory()
    split = [text.split(",") if text else [] for text in (networks, quantities, batch, backends)]
    if unknown := set(split[0]) - set(NETWORKS):
        raise click.BadParameter(f"unknown networks: {', '.join(sorted(unknown))}")
    if unknown := set(split[3]) - set(BACKENDS):
        raise click.BadParameter(f"unknown backends: {', '.join(sorted(unknown))}")
    cells = select(split[0], split[1], [int(size) for size in split[2]], quick)
    everyone = contestants(split[3], peers)
    console = Console(width=100 + 26 * len(everyone), highlight=False)
    progress = Console(stderr=True, highlight=False)
    versions = (f"hbpcompiler {hbpcompiler.__version__}, torch {torch.__version__}, {threads} threads, "
                f"{devices.in_words()}, float32")
    console.print(f"Multiples of the plain gradient's time, medians (quartiles) of {rounds} rounds; {versions}\n")
    referees: dict[tuple[str, int], Referee] = {}
    results = []
    for cell in cells:
        key = cell.network, cell.check_batch
        if checked and key not in referees:
            referees = {key: Referee(*key)}  # the last network's only: references are large
        result = measure(cell, referees[key] if checked else None, everyone, rounds, limit, patience)
        if with_memory:
            measure_memory(result, list(everyone), threads, limit, device)
        results.append(result)
        texts = ", ".join(f"{name} {result.text(name)}" for name in everyone)
        progress.print(f"{cell.title} {cell.what}: {texts}", markup=False, soft_wrap=True)
        if json_file is not None:
            record = {"versions": versions, "cells": [each.record() for each in results]}
            json_file.write_text(json.dumps(record, indent=1), encoding="utf-8")
    show(console, results, list(everyone))
    if figure_file is not None:
        from .figure import draw

        draw(results, list(everyone), figure_file)


if __name__ == "__main__":
    main()
