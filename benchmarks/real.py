"""`python -m benchmarks.real`: networks of today at real size, in multiples of the plain gradient, beside peers.

Networks come from torchvision, timm and transformers, where these are installed, with random weights in eval mode and
single precision. Beside us: torch.func (vmap of grad), curvlinops' KFAC, BackPACK, and Opacus' ghost norms, each where
it is installed and can. Every cell has its arithmetic floor (see `real_floor`); `--detail` says memory (a fresh process
for each), first call and lines; `--profile` where the time goes in rows above twice their floor; `--check` compares
gradients, norms, variances and factors with autograd's at these sizes. `--json` keeps what was found in a file, to
which later runs add other networks and quantities, and `--table` prints it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from torch.profiler import ProfilerActivity, profile

import hbpcompiler as hbp

from . import devices
from .memory import growth, printed
from .networks import Problem
from .peers import Run, gradient
from .real_check import TOLERANCE, errors
from .real_floor import floor
from .real_networks import CELLS, NotInstalledError, given, in_words
from .real_peers import PEERS, asked_of
from .real_table import markdown
from .timing import Clock, Measured, interleaved, prepare

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


def described(problem: Problem, quantities: str) -> dict[str, float]:
    """Ours: seconds of the first call (without its proof), lines of the program, predicted bytes."""
    start = time.perf_counter()
    compiled = compiled_for(problem, quantities)
    compiled(problem.inputs, problem.target)
    return {"first": time.perf_counter() - start, "lines": compiled.code.count("\n"),
            "predicted": compiled.predicted_memory(problem.size)}


def told(facts: Mapping[str, Any]) -> str:
    """What `described` and fresh processes found, in words."""
    held = ", ".join(f"{name} {in_words(count)}" for name, count in facts["memory"].items())
    return (f"first call {facts['first']:.1f} s, {facts['lines']} lines, predicted {in_words(facts['predicted'])}; "
            f"{held}")


def checked(cell: str, problem: Problem, *, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Errors of our numbers beside autograd's. Raises ClickException if one is too large."""
    found = errors(problem)
    print(f"{cell}, largest errors: {', '.join(f'{name} {error:.0e}' for name, error in found.items())}", flush=True)
    wrong = {name: error for name, error in found.items() if not error < tolerance}
    if wrong:
        raise click.ClickException(f"{cell}: {', '.join(wrong)} differ from autograd's by more than {tolerance:g}")
    return found


def add_to(file: str, cell: str, found: Mapping[str, Any]) -> None:
    """What was found of a network, into a file that may have more of it."""
    path = Path(file)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    own = kept.setdefault(cell, {})
    for name, value in found.items():
        own[name] = {**own.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(kept), encoding="utf-8")


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
@click.option("--rounds", default=7, show_default=True, help="Measurements of each contestant, in turns; 0: no times.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds that one call may take.")
@click.option("--patience", default=0.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--threads", default=2, show_default=True)
@devices.DEVICE
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True,
              help="cpu: seconds of all threads, which a busy machine disturbs less.")
@click.option("--detail", "detailed", is_flag=True, help="Memory, first call and lines, in fresh processes.")
@click.option("--profile", "profiling", is_flag=True, help="Where the time goes in rows above twice their floor.")
@click.option("--check", "checking", is_flag=True, help="Compare our numbers with autograd's, instead of timing.")
@click.option("--json", "file", default="", help="Where to add all measurements, one network after the other.")
@click.option("--table", "shown", is_flag=True, help="Print the file as a table in Markdown; measure nothing.")
def main(networks: str, quantities: str, rounds: int, limit: float, patience: float, peers: bool, threads: int,
         device: str, clock: str, detailed: bool, profiling: bool, checking: bool, file: str, shown: bool) -> None:
    """First-order statistics and Kronecker factors of networks of today."""
    if shown:
        print(markdown(json.loads(Path(file).read_text(encoding="utf-8"))))
        return
    prepare(threads, device)
    asked = quantities.split(",")
    for cell, problem in rows_of(networks, lambda text: print(text, flush=True)):
        if checking:
            found: dict[str, Any] = {"errors": checked(cell, problem)}
        elif rounds == 0:
            found = {}
        else:
            found = measured_row(cell, problem, asked, rounds, limit, patience, peers, CLOCKS[clock], profiling)
        if file:
            add_to(file, cell, found)
        for each in asked if detailed else ():
            facts = {"floor": floor(problem, each), **described(problem, each),
                     "memory": _memory(cell, each, peers, threads, device)}
            print(f"    {each}: {told(facts)}", flush=True)
            if file:
                add_to(file, cell, {f"facts {each}": facts})


def measured_row(cell: str, problem: Problem, asked: Sequence[str], rounds: int, limit: float, patience: float,
                 peers: bool, clock: Clock, profiling: bool) -> dict[str, Any]:
    """Times of everyone, printed; seconds by "name quantities"."""
    runs = contestants(problem, asked, peers)
    measured = interleaved(runs, rounds, limit, patience, clock=clock, alternating=True)
    for each, ratio in row(cell, problem, asked, measured).items():
        if profiling and ratio > ABOVE:
            print(f"    {each} takes {ratio:.1f} times its floor:\n{profiled(problem, each)}", flush=True)
    found: dict[str, Any] = {name: each.seconds for name, each in measured.items()}
    for each in asked:
        found |= {f"{GRADIENT} {each}": found[GRADIENT], f"facts {each}": {"floor": floor(problem, each)}}
    return found


def _memory(cell: str, quantities: str, peers: bool, threads: int, device: str) -> dict[str, int]:
    """Bytes of every contestant that can, in a process of its own."""
    found = {}
    for name in (OURS, *(PEERS if peers else ())):
        measured = printed("benchmarks.real_memory", [cell, name, quantities, str(threads), device], LATEST)
        if measured.bytes is not None:
            found[name] = measured.bytes
    return found


if __name__ == "__main__":
    main()
