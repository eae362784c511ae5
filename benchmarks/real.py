"""`python -m benchmarks.real`: networks of today at real size, in multiples of the plain gradient, beside peers.

Networks come from torchvision, timm and transformers, where these are installed, with random weights in eval mode and
single precision. Beside us: torch.func (vmap of grad), curvlinops' KFAC, BackPACK, and Opacus' ghost norms, each where
it is installed and can. Every cell has its arithmetic floor (see `real_floor`); `--detail` says memory (a fresh process
for each), first call and lines; `--profile` where the time goes in rows above twice their floor.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
from torch.profiler import ProfilerActivity, profile

import hbpcompiler as hbp

from . import devices
from .memory import growth, printed
from .networks import Problem
from .peers import Run, gradient
from .real_floor import floor
from .real_networks import CELLS, NotInstalledError, given, in_words
from .real_peers import PEERS, asked_of
from .timing import Measured, interleaved, prepare

QUANTITIES = ("batch_l2", "variance", "diag_ggn_mc", "kfac", "grad+batch_l2+variance+diag_ggn_mc")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
GRADIENT, OURS = "gradient", "ours"
ABOVE = 2.0
"""Times its floor: from there on a row is profiled."""
SHOWN = 8
"""Operations of torch in a profile."""
LATEST = 600.0
"""Seconds that a fresh process may take."""


def compiled_for(problem: Problem, quantities: str) -> hbp.Compiled:
    """For these quantities, Kronecker factors of the layers that all contestants know."""
    return hbp.compile(problem.model, problem.loss, asked_of(problem, quantities.split("+")), verify=False)


def ours(problem: Problem, quantities: str) -> Run:
    """The public call, its checks of the batch included."""
    compiled = compiled_for(problem, quantities)
    return Run(lambda: compiled(problem.inputs, problem.target), lambda result: result)


def contestant(name: str, problem: Problem, quantities: str) -> Run | None:
    if name == GRADIENT:
        return gradient(problem)
    return ours(problem, quantities) if name == OURS else PEERS[name](problem, quantities)


def contestants(problem: Problem, quantities: Sequence[str], peers: bool) -> dict[str, Run]:
    """The gradient, and whoever can compute each of the cells, by "name quantities"."""
    plain = gradient(problem)
    assert plain is not None
    found = {GRADIENT: plain}
    for asked in quantities:
        for name in (OURS, *(PEERS if peers else ())):
            run = contestant(name, problem, asked)
            if run is not None:
                found[f"{name} {asked}"] = run
    return found


def described(problem: Problem, quantities: str) -> str:
    """Ours: seconds of the first call (without its proof), lines of the program, predicted memory."""
    start = time.perf_counter()
    compiled = compiled_for(problem, quantities)
    compiled(problem.inputs, problem.target)
    first, predicted = time.perf_counter() - start, compiled.predicted_memory(problem.size)
    lines = compiled.code.count("\n")
    return f"first call {first:.1f} s, {lines} lines, predicted {in_words(predicted)}"


def peak(cell: str, name: str, quantities: str) -> int | None:
    """Bytes by which this process grows during a call of a contestant."""
    run = contestant(name, given(cell), quantities)
    if run is None:
        return None
    run.call()
    return growth(run.call)


def profiled(problem: Problem, quantities: str) -> str:
    """The operations of torch that take most of a call of ours, in milliseconds and shares."""
    run = ours(problem, quantities)
    run.call()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run.call()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return "\n".join(f"      {event.key:40} {event.self_cpu_time_total / 1000:9.1f} ms "
                     f"{event.self_cpu_time_total / whole:5.0%}  {event.count} calls" for event in events[:SHOWN])


def row(cell: str, problem: Problem, quantities: Sequence[str], measured: Mapping[str, Measured]) -> dict[str, float]:
    """Prints the row's cells; ours over the floor, by quantities."""
    base = measured[GRADIENT].median
    print(f"{cell}, gradient {1000 * base:.0f} ms; in gradients:", flush=True)
    above = {}
    for asked in quantities:
        least, texts = floor(problem, asked), []
        for name in (OURS, *PEERS):
            each = measured.get(f"{name} {asked}")
            if each is not None:
                texts.append(f"{name} {each.failure or f'{each.median / base:.2f}'}"
                             f"{'?' * (2 * each.disturbed > len(each.seconds))}")
        own = measured[f"{OURS} {asked}"]
        if not own.failure:
            above[asked] = own.median / base / least
        print(f"  {asked}: {', '.join(texts)}; floor {least:.2f}", flush=True)
    return above


def rows_of(networks: str, skip: Callable[[str], None]) -> list[tuple[str, Problem]]:
    """The problems that can be had here."""
    found = []
    for cell in networks.split(",") if networks else CELLS:
        try:
            found.append((cell, given(cell)))
        except NotInstalledError as error:
            skip(str(error))
    return found


@click.command()
@click.option("--networks", default="", help=f"With commas, as name:batch@pixels or name:batchxtokens; default: "
                                             f"{', '.join(CELLS)}.")
@click.option("--quantities", default=",".join(QUANTITIES), show_default=True, help="With commas; + for one call.")
@click.option("--rounds", default=7, show_default=True, help="Measurements of each contestant, in turns.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds that one call may take.")
@click.option("--patience", default=0.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--threads", default=2, show_default=True)
@devices.DEVICE
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less.")
@click.option("--detail", "detailed", is_flag=True, help="Memory, first call and lines, in fresh processes.")
@click.option("--profile", "profiling", is_flag=True, help="Where the time goes in rows above twice their floor.")
@click.option("--json", "file", default="", help="Where to write all measurements.")
def main(networks: str, quantities: str, rounds: int, limit: float, patience: float, peers: bool, threads: int,
         device: str, clock: str, detailed: bool, profiling: bool, file: str) -> None:
    """First-order statistics and Kronecker factors of networks of today."""
    prepare(threads, device)
    asked, kept = quantities.split(","), {}
    for cell, problem in rows_of(networks, lambda text: print(text, flush=True)):
        runs = contestants(problem, asked, peers)
        measured = interleaved(runs, rounds, limit, patience, clock=CLOCKS[clock], alternating=True)
        above = row(cell, problem, asked, measured)
        kept[cell] = {name: each.seconds for name, each in measured.items()}
        for each in asked if detailed else ():
            print(f"    {each}: {described(problem, each)}; {_memory(cell, each, peers, threads, device)}", flush=True)
        for each, ratio in above.items() if profiling else ():
            if ratio > ABOVE:
                print(f"    {each} takes {ratio:.1f} times its floor:\n{profiled(problem, each)}", flush=True)
    if file:
        Path(file).write_text(json.dumps(kept), encoding="utf-8")


def _memory(cell: str, quantities: str, peers: bool, threads: int, device: str) -> str:
    """Of every contestant that can, in a process of its own."""
    found = []
    for name in (OURS, *(PEERS if peers else ())):
        measured = printed("benchmarks.real_memory", [cell, name, quantities, str(threads), device], LATEST)
        if measured.bytes is not None:
            found.append(f"{name} {in_words(measured.bytes)}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
