"""`python -m benchmarks.data_sets`: `hbp.accumulate` over a loader, beside loops written by hand and other packages.

Samples per second through the same DataLoader, interleaved, medians over rounds: the gradient as torch users write it,
the compiled program in a bare loop that throws its results away, and `accumulate`; then Kronecker factors beside
curvlinops and Laplace, compared with ours in float64 before; one process and two; and the memory of a process after
many batches, which must not grow. Seconds are CPU seconds (of all threads), which a busy machine disturbs less.
"""

from __future__ import annotations

import copy
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hbpcompiler as hbp

from .data_sets_peers import FITS, largest_gap
from .networks import problem
from .peers import Run
from .timing import interleaved, prepare

PATIENCE = 0.0
"""CPU time needs no quiet machine."""
RANK = "--as-rank"
PARTS = ("loops", "fits", "ranks", "memory")


def loader_of(network: str, size: int, count: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any, Any]:
    """Model, loss and a loader of so many batches."""
    made = problem(network, size * count)
    return made.model.to(dtype), made.loss, DataLoader(TensorDataset(made.inputs.to(dtype), made.target),
                                                       batch_size=size)


def runs_of(calls: dict[str, Callable[[], Any]]) -> dict[str, Run]:
    return {name: Run(call, lambda result: {}) for name, call in calls.items()}


def loops(network: str, quantity: str, size: int, count: int) -> dict[str, Run]:
    """The three ways, by name."""
    model, loss, loader = loader_of(network, size, count)
    compiled = hbp.compile(model, loss, [quantity])

    def gradient() -> None:
        for X, y in loader:
            model.zero_grad()
            loss(model(X), y).backward()

    def bare() -> None:
        for X, y in loader:
            compiled(X, y)

    def accumulated() -> Any:
        return hbp.accumulate(compiled, loader, progress=False)

    return runs_of({"gradient": gradient, "bare loop": bare, "accumulate": accumulated})


def fits(network: str, size: int, count: int) -> dict[str, Run]:
    """The gradient and all whose numbers are ours; the others are named, with the largest difference."""
    model, _, loader = loader_of(network, 4, 2, torch.float64)
    taking_part, scales = [], {}
    for name, make in FITS.items():
        made = make(copy.deepcopy(model), loader, len(loader.dataset))
        if made is None:
            click.echo(f"{name} is not installed: it takes no part")
            continue
        call, read = made
        scales[name] = read(call())
        gap, parameter = largest_gap(scales[name], scales["accumulate"])
        click.echo(f"{name}: scales of the weights' blocks differ by {gap:.0e} at most, in {parameter}")
        taking_part.append(name)
    model, _, loader = loader_of(network, size, count)
    found: dict[str, Callable[[], Any]] = {"gradient": loops(network, "grad", size, count)["gradient"].call}
    for name in taking_part:
        made = FITS[name](copy.deepcopy(model), loader, len(loader.dataset))  # some write to it
        assert made is not None
        found[name] = made[0]
    return runs_of(found)


def growth(batches: int) -> list[tuple[int, float]]:
    """(batches, MiB of the process at most so far) of a long accumulation."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    compiled = hbp.compile(model, None, ["grad", "kfac"])
    seen: list[tuple[int, float]] = []

    def loader() -> Any:
        for number in range(batches):
            if number in (batches // 10, batches // 2, batches - 1):
                seen.append((number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
            yield torch.randn(32, 64), torch.randint(10, (32,))

    hbp.accumulate(compiled, loader(), progress=False)
    return seen


def as_rank(network: str, size: int, count: int) -> None:
    """Under torchrun: print the seconds of this rank's part, the exchange included; wall and CPU."""
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, loss, whole = loader_of(network, size, count)
    loader = DataLoader(hbp.shard(whole.dataset, rank, world), batch_size=size)
    compiled, group = hbp.compile(model, loss, ["kflr"]), torch.distributed.group.WORLD
    hbp.accumulate(compiled, loader, progress=False, group=group, max_batches=1)
    torch.distributed.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    hbp.accumulate(compiled, loader, progress=False, group=group)
    sys.stdout.write(f"rank {rank} of {world}: {time.perf_counter() - wall:.2f} s, "
                     f"CPU {time.process_time() - cpu:.2f} s\n")  # whole, beside the other ranks'
    torch.distributed.destroy_process_group()


def ranks(world: int, network: str, size: int, count: int) -> str:
    """What so many ranks print, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone", "-m",
               "benchmarks.data_sets", RANK, "--networks", network, "--batch", str(size), "--count", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    return done.stdout.strip()


@click.command()
@click.option("--networks", default="logreg,3c3d", show_default=True)
@click.option("--batch", "size", default=64, show_default=True, help="Samples of a batch.")
@click.option("--count", default=10, show_default=True, help="Batches of the loader.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--batches", default=10_000, show_default=True, help="Of the run whose memory is watched.")
@click.option("--ranks", "worlds", default="1,2", show_default=True, help="Numbers of processes; none: leave it out.")
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Which tables.")
@click.option(RANK, "rank", is_flag=True, hidden=True)
def main(networks: str, size: int, count: int, rounds: int, threads: int, batches: int, worlds: str, parts: str,
         rank: bool) -> None:
    """Print the tables."""
    names = networks.split(",")
    if rank:
        as_rank(names[0], size, count)
        return
    prepare(threads)
    chosen = parts.split(",")
    if "loops" in chosen:
        print_loops(names, size, count, rounds)
    if "fits" in chosen:
        print_fits(names, size, count, rounds)
    if "ranks" in chosen:
        click.echo(f"\nkflr of {names[-1]} over ranks of one thread")
        for world in filter(None, worlds.split(",")):
            click.echo(ranks(int(world), names[-1], size, count))
    if "memory" in chosen:
        click.echo("")
        for number, mebi in growth(batches):
            click.echo(f"after {number} batches the process has had {mebi:.0f} MiB at most")


def print_loops(names: list[str], size: int, count: int, rounds: int) -> None:
    """Samples per second."""
    click.echo(f"{'network':8} {'quantity':10} {'samples/s':>10} {'bare loop':>10} {'accumulate':>11}   over the "
               "gradient;  accumulate over the bare loop")
    for network in names:
        for quantity in ("grad", "kfac", "kflr", "variance"):
            own_runs = loops(network, quantity, size, count)
            found = interleaved(own_runs, rounds, 60, PATIENCE, clock=time.process_time, alternating=True)
            first, bare, own = (found[name].median for name in own_runs)
            click.echo(f"{network:8} {quantity:10} {size * count / own:10.0f} {bare / first:10.2f} {own / first:11.2f} "
                       f"{own / bare:21.3f}")


def print_fits(names: list[str], size: int, count: int, rounds: int) -> None:
    """Beside others."""
    click.echo("\nKronecker factors of the exact GGN, of the whole loader")
    for network in names:
        found = interleaved(fits(network, size, count), rounds, 120, PATIENCE, clock=time.process_time,
                            alternating=True)
        base = found["gradient"].median
        for name, measured in found.items():
            shown = measured.failure or (f"{size * count / measured.median:8.0f} samples/s, "
                                         f"{measured.median / base:.2f} gradients")
            click.echo(f"{network:8} {name:12} {shown}")


if __name__ == "__main__":
    main()
