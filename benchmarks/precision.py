"""`python -m benchmarks.precision`: what columns of curvature in another dtype gain in time and lose in error.

Each row is a network, a batch size and a quantity. Both programs, the plain one and the one with `curvature_dtype`,
run in turns (see `timing`); errors are relative, in norm over all of a quantity's tensors, for the same random draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor

import hbpcompiler as hbp

from .networks import NETWORKS, Problem, problem
from .peers import Run
from .timing import Measured, interleaved, prepare

CELLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "mlp": (128, ("diag_ggn", "diag_h", "kflr", "kfac", "diag_ggn_mc")),
    "2c2d": (16, ("diag_ggn", "kflr", "kfac", "diag_ggn_mc")),
    "3c3d": (16, ("diag_ggn", "kflr", "kfac", "diag_ggn_mc")),
    "3c3d-one-sigmoid": (4, ("diag_h",)),
    "allcnnc": (2, ("diag_ggn", "kflr", "kfac")),
}
"""network -> batch size and quantities."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def tensors(item: Any) -> Iterator[Tensor]:
    """All tensors of a quantity's values."""
    if isinstance(item, Tensor):
        yield item
    for part in () if item is None or isinstance(item, Tensor) else item:
        yield from tensors(part)


def error(found: Any, exact: Any) -> float:
    """Relative, in norm, of two dicts by parameter name."""
    pairs = [pair for name in exact for pair in zip(tensors(found[name]), tensors(exact[name]), strict=True)]
    wrong = sum(float((one - other).double().square().sum()) for one, other in pairs)
    return math.sqrt(wrong / sum(float(other.double().square().sum()) for _, other in pairs))


def drawn(compiled: hbp.Compiled, given: Problem) -> hbp.Result:
    return compiled(given.inputs, given.target, generator=torch.Generator().manual_seed(0))


def row(name: str, size: int, quantity: str, dtype: torch.dtype, rounds: int, limit: float, patience: float) -> str:
    """One line of the table."""
    given = problem(name, size)
    programs = {"plain": hbp.compile(given.model, given.loss, [quantity]),
                "rounded": hbp.compile(given.model, given.loss, [quantity], curvature_dtype=dtype)}
    exact, found = (drawn(compiled, given)[quantity] for compiled in programs.values())
    wrong = error(found, exact)
    del exact, found
    runs = {kind: Run(partial(compiled, given.inputs, given.target), lambda result: {})
            for kind, compiled in programs.items()}
    measured = interleaved(runs, rounds, limit, patience)
    failures = [each.failure for each in measured.values() if each.failure]
    title = f"{NETWORKS[name].title + ':' + str(size):36} {quantity:12}"
    if failures:
        return f"{title} {failures[0]}"
    plain, rounded = (measured[kind] for kind in ("plain", "rounded"))
    gain, mark = plain.median / rounded.median, "?" * any(each.disturbed > rounds / 2 for each in measured.values())
    return f"{title} {_milliseconds(plain)} {_milliseconds(rounded)} {gain:8.2f}{mark:1} {wrong:10.1e}"


def _milliseconds(measured: Measured) -> str:
    return f"{measured.median * 1000:10.1f}"


def chosen(networks: str, quantities: str, batch: int | None) -> Iterator[tuple[str, int, str]]:
    for name in networks.split(",") if networks else CELLS:
        size, known = CELLS.get(name, (16, ("diag_ggn",)))
        wanted: Sequence[str] = quantities.split(",") if quantities else known
        for quantity in wanted:
            yield name, batch or size, quantity


@click.command()
@click.option("--networks", default="", help=f"With commas, of {', '.join(NETWORKS)}. Default: {', '.join(CELLS)}.")
@click.option("--quantities", default="", help="With commas. Default: some of each network's.")
@click.option("--batch", type=int, default=None, help="Batch size of all networks. Default: each its own.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--rounds", default=9, show_default=True, help="Measurements of each program, in turns.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds that one call may take.")
@click.option("--patience", default=60.0, show_default=True, help="Seconds to wait for a quiet machine, for each row.")
@click.option("--threads", default=2, show_default=True)
def main(networks: str, quantities: str, batch: int | None, dtype: str, rounds: int, limit: float, patience: float,
         threads: int) -> None:
    """Speed-up and error of curvature in another dtype, beside the model's float32."""
    prepare(threads)
    print(f"{'network:batch':36} {'quantity':12} {'float32 ms':>10} {dtype:>10} {'speed-up':>8}  {'error':>10}")
    for name, size, quantity in chosen(networks, quantities, batch):
        print(row(name, size, quantity, DTYPES[dtype], rounds, limit, patience), flush=True)


if __name__ == "__main__":
    main()
