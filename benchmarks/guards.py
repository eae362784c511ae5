"""`python -m benchmarks.guards`: what a call spends to see that nothing of Python's state has moved.

Calls with it and without it are timed in turns. Between two calls' kernels its code and what it looks at have left the
processor's caches, so that it costs more than in a loop of nothing else, which stands beside.
"""

from __future__ import annotations

import statistics
import time
import timeit
import types
from collections.abc import Callable
from typing import Any

import click

import hbpcompiler as hbp

from .networks import problem
from .timing import prepare

CALLS = 10
"""One measurement's."""
WARM_UP = 200
QUANTITIES = "grad;grad,variance;diag_ggn;kfac;kflr;grad,batch_l2,variance,diag_ggn_mc"


def share_of_calls(name: str, size: int, quantities: list[str], rounds: int) -> str:
    """The guards' microseconds in a call, and in a loop of their own, in words."""
    given = problem(name, size)
    compiled = hbp.compile(given.model, given.loss, quantities=quantities)
    for _ in range(WARM_UP):
        compiled(given.inputs, given.target)
    guards: Any = compiled._guards
    state, own = guards.current(), guards.current
    without = types.MethodType(lambda self: state, guards)
    alone = min(timeit.repeat(own, number=WARM_UP * CALLS, repeat=5)) / (WARM_UP * CALLS)
    seconds: dict[Callable[[], Any], list[float]] = {own: [], without: []}
    for turn in range(2 * rounds):
        guards.current = (own, without, without, own)[turn % 4]
        began = time.perf_counter()
        for _ in range(CALLS):
            compiled(given.inputs, given.target)
        seconds[guards.current].append((time.perf_counter() - began) / CALLS)
    call = statistics.median(seconds[own])
    in_place = statistics.median(one - other for one, other in zip(seconds[own], seconds[without], strict=True))
    return (f"call {1e6 * call:.0f} us, guards {1e6 * in_place:.1f} us, {in_place / call:.1%}; "
            f"in a loop of their own {1e6 * alone:.1f} us, {alone / call:.1%}")


@click.command()
@click.option("--network", default="logreg", show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--quantities", default=QUANTITIES, show_default=True, help="Sets, with semicolons.")
@click.option("--rounds", default=400, show_default=True, help=f"Of {CALLS} calls each, with and without.")
@click.option("--threads", default=1, show_default=True)
def main(network: str, batch: int, quantities: str, rounds: int, threads: int) -> None:
    """The share of a call that its guards take."""
    prepare(threads)
    for names in quantities.split(";"):
        print(f"{network}:{batch}, {names}: {share_of_calls(network, batch, names.split(','), rounds)}", flush=True)


if __name__ == "__main__":
    main()
