"""`python -m benchmarks.second_order`: diagonals of the GGN and of the Hessian of a ResNet-18, a ViT and a GPT.

Time and memory as predicted and as measured; entries drawn at random, a few of each parameter, beside double backward
in double precision; and beside a whole diagonal what it would take otherwise: as many Hessian-vector products as there
are parameters, or Hutchinson's estimate v * (H v) in as much time. A call that is predicted to take longer than
`--limit` is not made: its prediction stands there. `diag_h_mc_all:16` is diag_h_mc_all with mc_samples=16.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import click
import torch

import hbpcompiler as hbp
from hbpcompiler.calls.long_calls import in_words

from .memory import MEBI, growth, printed
from .networks import Problem
from .peers import Run, gradient
from .real import CLOCKS
from .second_order_entries import Diagonal, Entries, drawn, error, hutchinson, of_ggn, of_hessian, product
from .second_order_networks import NETWORKS, given
from .timing import Measured, interleaved, prepare

QUANTITIES = ("diag_ggn", "diag_h", "diag_h_mc", "diag_h_mc_all", "diag_h_mc_all:16")
TRUTH = {"diag_ggn": of_ggn, "diag_ggn_mc": of_ggn, "diag_h": of_hessian, "diag_h_mc": of_hessian,
         "diag_h_mc_all": of_hessian}
GRADIENT, PRODUCT = "gradient", "product"
LATEST = 900.0
"""Seconds that a fresh process may take."""
LONE = 10.0
"""Seconds: what takes longer is measured once."""


def compiled_for(problem: Problem, asked: str) -> hbp.Compiled:
    """For "quantity" or "quantity:mc_samples"."""
    quantity, _, samples = asked.partition(":")
    return hbp.compile(problem.model, problem.loss, [quantity], mc_samples=int(samples or 1), verify=False,
                       limits=hbp.Limits(announced_seconds=1e9), example_inputs=(problem.inputs, problem.target))


def diagonal(compiled: hbp.Compiled, problem: Problem, asked: str) -> Diagonal:
    found: Diagonal = compiled(problem.inputs, problem.target)[asked.partition(":")[0]]
    return found


def timed(problem: Problem, programs: Mapping[str, hbp.Compiled], rounds: int, limit: float,
          clock: str) -> dict[str, Measured]:
    """The gradient, one Hessian-vector product, and each program, in turns."""
    vectors = [torch.randn_like(parameter) for parameter in problem.model.parameters()]
    plain = gradient(problem)
    assert plain is not None
    runs = {GRADIENT: plain, PRODUCT: Run(lambda: product(problem, vectors), lambda found: {})}
    for asked, compiled in programs.items():
        runs[asked] = Run(partial(compiled, problem.inputs, problem.target), lambda found: {})
    return interleaved(runs, rounds, limit, 0, LONE, clock=CLOCKS[clock], alternating=True)


def peak(name: str, asked: str, batch: int) -> int:
    """Bytes by which this process grows during one call."""
    problem = given(name, batch)
    compiled = compiled_for(problem, asked)
    compiled(problem.inputs, problem.target)
    return growth(lambda: compiled(problem.inputs, problem.target))


def errors(problem: Problem, compiled: hbp.Compiled, asked: str, seconds: float, one_product: float, entries: Entries,
           repeats: int) -> str:
    """How far the entries are off; of a sample the mean over some, and beside it Hutchinson's at equal time."""
    exact = TRUTH[asked.partition(":")[0]](problem, entries)
    if "_mc" not in asked:
        return f"entries off by {error(diagonal(compiled, problem, asked), exact, entries):.1e}"
    found = [error(diagonal(compiled, problem, asked), exact, entries) for _ in range(repeats)]
    text = f"error {sum(found) / repeats:.2g}"
    if asked.startswith("diag_h"):
        probes = max(1, round(seconds / one_product))
        other = [error(hutchinson(problem, probes), exact, entries) for _ in range(repeats)]
        text += f", Hutchinson's {sum(other) / repeats:.2g} with {probes} products in the same time"
    return text


@click.command()
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="With commas.")
@click.option("--quantities", default=",".join(QUANTITIES), show_default=True, help="With commas.")
@click.option("--batch", default=4, show_default=True)
@click.option("--limit", default=60.0, show_default=True, help="Seconds that a call may be predicted to take.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each, in turns.")
@click.option("--entries", "each", default=2, show_default=True, help="Of each parameter, by double backward; 0: none.")
@click.option("--repeats", default=3, show_default=True, help="Draws that a sampled quantity's error is the mean of.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="In fresh processes.")
@click.option("--threads", default=2, show_default=True)
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True)
def main(networks: str, quantities: str, batch: int, limit: float, rounds: int, each: int, repeats: int, memory: bool,
         threads: int, clock: str) -> None:
    """Second order on networks of today, at small size."""
    prepare(threads)
    for name in networks.split(","):
        table(name, quantities.split(","), batch, limit, rounds, each, repeats, memory, threads, clock)


def table(name: str, quantities: Sequence[str], batch: int, limit: float, rounds: int, each: int, repeats: int,
          memory: bool, threads: int, clock: str) -> None:
    """One network's rows."""
    problem = given(name, batch)
    entries = drawn(problem, each)
    programs: dict[str, hbp.Compiled] = {}
    started: dict[str, float] = {}
    for asked in quantities:
        start = time.perf_counter()
        programs[asked] = compiled_for(problem, asked)
        started[asked] = time.perf_counter() - start
    predicted = {asked: compiled.predicted_seconds(batch) for asked, compiled in programs.items()}
    called = {asked: compiled for asked, compiled in programs.items() if predicted[asked] <= limit}
    measured = timed(problem, called, rounds, 10 * limit, clock)
    count, one = sum(parameter.numel() for parameter in problem.model.parameters()), measured[PRODUCT].median
    print(f"{name}:{batch}, {count / 1e6:.2f} million parameters: gradient {in_words(measured[GRADIENT].median)}, "
          f"a Hessian-vector product {in_words(one)}, as many as parameters {in_words(count * one)}", flush=True)
    for asked, compiled in programs.items():
        bytes_held = compiled.predicted_memory(batch) / MEBI
        text = (f"  {asked}: predicted {in_words(predicted[asked])}, {bytes_held:.0f} MiB; "
                f"{len(compiled.code.splitlines())} lines, compiled in {in_words(started[asked])}")
        failure = measured[asked].failure if asked in called else "not run"
        if failure:
            print(f"{text}; {failure}", flush=True)
            continue
        seconds = measured[asked].median
        text += f"; measured {in_words(seconds)}, {seconds / measured[GRADIENT].median:.1f} gradients"
        if memory:
            found = printed("benchmarks.second_order_memory", [name, asked, str(batch), str(threads)], LATEST)
            text += f", {found.failure if found.bytes is None else f'{found.bytes / MEBI:.0f} MiB'}"
        if each:
            text += f"; {errors(problem, compiled, asked, seconds, one, entries, repeats)}"
        print(text, flush=True)


if __name__ == "__main__":
    main()
