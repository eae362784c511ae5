"""`python -m benchmarks.backends`: the same program as Python, scripted, and compiled by torch.compile.

Networks come from torchvision, timm and transformers, as in `benchmarks.real`, in eval mode and single precision. Each
backend has a model of its own, so that none is spared an export, and torch.compile begins with an empty cache. The
first call is what a user waits for: all stages, the proof, the compiler. Then calls are measured in turns, and their
numbers are compared with those of the plain file under the same random state.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import click
import torch

import hbpcompiler as hbp

from .kept import default_figures, largest_difference
from .networks import SEED, Problem
from .peers import Run, gradient
from .real import CLOCKS, asked_of
from .real_networks import given
from .timing import Measured, TooSlowError, interleaved, prepare, time_limit

BACKENDS = ("python", "torchscript", "inductor")
PLAIN = BACKENDS[0]
GRADIENT = "gradient"
CELLS = ("resnet18:16@64", "vit4:8@64", "bert4:8x64")
QUANTITIES = ("grad+batch_l2+variance", "kfac", "diag_ggn_mc")
CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass
class Row:
    """What was found of one network and its quantities, by backend."""

    first: dict[str, float] = field(default_factory=dict)
    """Seconds of the first call."""
    gaps: dict[str, tuple[float, str]] = field(default_factory=dict)
    """The largest difference from the plain file's numbers, and where."""
    measured: dict[str, Measured] = field(default_factory=dict)
    """Of the gradient too."""
    failures: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """For people: a line for each backend."""
        base = self.measured[GRADIENT].median
        yield f"  gradient {1000 * base:.0f} ms"
        for backend in BACKENDS:
            if backend in self.failures:
                yield f"  {backend}: {self.failures[backend]}"
            elif backend in self.measured:
                plain, own = self.measured[PLAIN].median, self.measured[backend].median
                gap, where = self.gaps[backend]
                yield (f"  {backend}: {own / base:.2f} gradients, {plain / own:.2f} times as fast as {PLAIN}; first "
                       f"call {self.first[backend]:.1f} s; largest difference {gap:.0e}{f' ({where})' * (gap > 0)}")


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """Meanwhile torch.compile knows nothing that an earlier run has compiled."""
    known = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
            if known is not None:
                os.environ[CACHE] = known


def with_children() -> float:
    """Seconds of the processor, of this process and of compilers that it has run."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def call_of(problem: Problem, quantities: str, backend: str) -> Run:
    """The public call, of the same random state each time."""
    asked = asked_of(problem, quantities.split("+"))
    compiled = hbp.compile(problem.model, problem.loss, asked, backend=backend)

    def call() -> hbp.Result:
        torch.manual_seed(SEED)
        return compiled(problem.inputs, problem.target)

    return Run(call, lambda result: {name: dict(result[name]) for name in result})


def measured_row(cell: str, quantities: str, backends: tuple[str, ...], rounds: int, limit: float, patience: float,
                 clock: str) -> Row:
    """First calls one after the other, then all of them in turns."""
    waited = with_children if clock == "cpu" else CLOCKS[clock]
    row = Row()
    plain = gradient(given(cell))
    assert plain is not None
    runs = {GRADIENT: plain}
    results: dict[str, Mapping[str, object]] = {}
    for backend in backends:
        run = call_of(given(cell), quantities, backend)
        start = waited()
        try:
            with time_limit(limit):
                results[backend] = run.read(run.call())
        except TooSlowError:
            row.failures[backend] = f"the first call takes more than {limit:g} s"
            if backend == PLAIN:
                break  # nothing to compare with
            continue
        row.first[backend] = waited() - start
        row.gaps[backend] = largest_difference(results[PLAIN], results[backend])
        runs[backend] = run
    row.measured = interleaved(runs, rounds, limit, patience, clock=CLOCKS[clock], alternating=True)
    return row


@click.command()
@click.option("--networks", default=",".join(CELLS), show_default=True,
              help="With commas, as name:batch@pixels or name:batchxtokens.")
@click.option("--quantities", default=",".join(QUANTITIES), show_default=True, help="With commas; + for one call.")
@click.option("--backends", default=",".join(BACKENDS), show_default=True, help=f"With commas, {PLAIN} first.")
@click.option("--rounds", default=7, show_default=True, help="Measurements of each contestant, in turns.")
@click.option("--limit", default=900.0, show_default=True, help="Seconds that a first call may take.")
@click.option("--patience", default=0.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--threads", default=2, show_default=True)
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less; of a first call also of compilers "
                   "that it runs (set TORCHINDUCTOR_COMPILE_THREADS=1, or workers escape it).")
def main(networks: str, quantities: str, backends: str, rounds: int, limit: float, patience: float, threads: int,
         clock: str) -> None:
    """One program by three backends: first call, later calls, numbers."""
    chosen = tuple(backends.split(","))
    if unknown := set(chosen) - set(BACKENDS):
        raise click.BadParameter(f"unknown backends: {', '.join(sorted(unknown))}")
    if chosen[0] != PLAIN:
        raise click.BadParameter(f"the others are compared with {PLAIN}: name it first")
    prepare(threads)
    for cell in networks.split(","):
        for asked in quantities.split(","):
            with default_figures(), empty_cache():
                row = measured_row(cell, asked, chosen, rounds, limit, patience, clock)
            print(f"{cell}, {asked}, {clock} seconds", *row.lines(), sep="\n", flush=True)


if __name__ == "__main__":
    main()
