"""`python -m benchmarks.large`: what it takes to compile ResNet-50 and DenseNet-121, and how long their programs are.

Each set of quantities is compiled in a fresh process, with the default figures, and called twice. Seconds are those of
the wall's clock and of the processor, which other processes disturb less.
"""

from __future__ import annotations

import cProfile
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

import hbpcompiler as hbp

from .kept import default_figures, keep, lengths, title
from .large_networks import LARGE, problem
from .networks import Problem
from .timing import prepare

CHECKOUT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Asked:
    """One row: what is compiled, and what else is wanted."""

    network: str
    quantities: str
    batch: int
    pixels: int
    threads: int
    top: int
    folder: Path | None


@dataclass(frozen=True)
class Seconds:
    """On the wall, and of the processor: the sum over this process's threads."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} ({self.processor:.2f})"


@dataclass(frozen=True)
class Found:
    lines: int
    longest: int
    compiling: Seconds
    calls: list[Seconds]
    profile: list[tuple[float, float, int, str]]
    """The slowest functions: seconds with and without callees, calls, where."""


def timed(call: Callable[[], object]) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def compile_for(given: Problem, quantities: str) -> hbp.Compiled:
    return hbp.compile(given.model, given.loss, quantities=quantities.split("+"),
                       example_inputs=(given.inputs, given.target))


def slowest(profile: cProfile.Profile, top: int) -> list[tuple[float, float, int, str]]:
    """This checkout's own functions, by their time with callees."""
    found = []
    for entry in profile.getstats():
        if not isinstance(entry.code, str):
            file = Path(entry.code.co_filename)
            if file.is_relative_to(CHECKOUT) and "site-packages" not in file.parts:
                where = f"{file.relative_to(CHECKOUT)}:{entry.code.co_firstlineno} {entry.code.co_qualname}"
                found.append((entry.totaltime, entry.inlinetime, entry.callcount, where))
    return sorted(found, reverse=True)[:top]


def measure(asked: Asked) -> Found:
    """In the process that calls it."""
    warnings.simplefilter("ignore")
    prepare(asked.threads)
    given = problem(asked.network, asked.batch, asked.pixels)
    made = []
    with default_figures():
        compiling = timed(lambda: made.append(compile_for(given, asked.quantities)))
        calls = [timed(lambda: made[0](given.inputs, given.target)) for _ in range(2)]
        profile = cProfile.Profile()
        if asked.top:
            profile.runcall(compile_for, given, asked.quantities)
    if asked.folder is not None:
        keep(asked.folder, title(f"{asked.network}-{asked.pixels}px", asked.batch, asked.quantities), made[0], given)
    return Found(*lengths(made[0].code), compiling, calls, slowest(profile, asked.top) if asked.top else [])


def in_subprocess(asked: Asked) -> Found:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, asked).result()


def show_profile(console: Console, asked: Asked, found: Found) -> None:
    table = Table(title=f"{LARGE[asked.network].title}, {asked.quantities}: a second compilation, profiled (slower)",
                  box=None, title_justify="left", padding=(0, 2, 0, 0))  # fmt: skip
    for column in ("seconds with callees", "without", "calls", "function"):
        table.add_column(column, justify="left" if column == "function" else "right")
    for whole, own, calls, where in found.profile:
        table.add_row(f"{whole:.2f}", f"{own:.2f}", f"{calls:,}", where)
    console.print()
    console.print(table)


@click.command(context_settings={"show_default": True})
@click.option("--networks", default=",".join(LARGE), help="Comma-separated.")
@click.option("--quantities", default="", help="Comma-separated; a+b is one program for both. Each network's own, "
              "if not given.")
@click.option("--pixels", default=64, help="Height and width of an image.")
@click.option("--batch", default=2, help="Batch size.")
@click.option("--profile", "top", default=0, help="How many of the compiler's slowest functions to show.")
@click.option("--save", "folder", type=click.Path(path_type=Path), help="Keep the programs there, as `programs save`.")
@click.option("--threads", default=os.cpu_count() or 1, help="Threads of torch.")
def main(networks: str, quantities: str, pixels: int, batch: int, top: int, folder: Path | None, threads: int) -> None:
    """Compile large networks in evaluation mode; print seconds and lines."""
    chosen = networks.split(",")
    if unknown := set(chosen) - set(LARGE):
        raise click.BadParameter(f"unknown networks: {', '.join(sorted(unknown))}")
    rows = [Asked(network, names, batch, pixels, threads, top, folder) for network in chosen
            for names in (quantities.split(",") if quantities else LARGE[network].quantities)]  # fmt: skip
    results = [(asked, in_subprocess(asked)) for asked in rows]
    console = Console(width=140, highlight=False)
    console.print(f"Batch {batch}, {pixels} x {pixels} pixels, torch {torch.__version__}, {threads} threads, float32; "
                  "seconds on the wall (of the processor)\n")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("network", "quantities", "lines", "longest line", "compile", "first call", "second call"):
        table.add_column(column, justify="left" if column in ("network", "quantities") else "right")
    for asked, found in results:
        table.add_row(LARGE[asked.network].title, asked.quantities, f"{found.lines:,}", f"{found.longest:,}",
                      str(found.compiling), *map(str, found.calls))
    console.print(table)
    for asked, found in results if top else []:
        show_profile(console, asked, found)


if __name__ == "__main__":
    main()
