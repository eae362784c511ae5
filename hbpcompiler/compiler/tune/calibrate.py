"""Measures a machine: a few small workloads, timed in turns, give the figures that `cost` counts with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import Machine
from hbpcompiler.compiler.program.kernels import has_onednn
from hbpcompiler.compiler.program.products import onednn_linear

Timer = Callable[[Callable[[], Any]], float]
"""Calls a function once and says how many seconds that took."""

ROUNDS, FEWEST = 15, 3
"""Every workload once per round, and the median of the rounds, so that a busy machine is busy for all."""
PATIENCE = 3.0
"""No further round once the measurements have taken so many seconds together."""
CALLS = 100


@dataclass(frozen=True)
class Workload:
    """A function, and how much (multiply-adds, bytes, calls into torch) it does in one call."""

    run: Callable[[], Any]
    units: float


def stopwatch(device: torch.device) -> Timer:
    """Wall time, with the device idle before and after."""

    def timer(run: Callable[[], Any]) -> float:
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - start

    return timer


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def calibrate(device: torch.device, dtype: torch.dtype = torch.float32, timer: Timer | None = None) -> Machine:
    """Measure in about a second. `timer` is for tests; by default it is wall time."""
    timer = timer or stopwatch(device)
    with torch.no_grad():
        return _machine(medians(_workloads(device, dtype), timer))


def _workloads(device: torch.device, dtype: torch.dtype) -> Mapping[str, Workload]:
    large = 768 if device.type == "cpu" else 4096
    many, small = (128, 48) if device.type == "cpu" else (4096, 48)
    length = (2**26 if device.type == "cpu" else 2**29) // dtype.itemsize  # far beyond any cache
    matrix = torch.ones(large, large, dtype=dtype, device=device)
    matrices = torch.ones(many, small, small, dtype=dtype, device=device)
    source = torch.ones(length, dtype=dtype, device=device)
    target = torch.empty_like(source)
    tiny = torch.ones(2, 2, dtype=dtype, device=device)
    images = torch.ones(many // 16, small, 24, 24, dtype=dtype, device=device)
    kernels = torch.ones(small, small, 3, 3, dtype=dtype, device=device)

    def calls() -> None:
        for _ in range(CALLS // 2):
            torch.einsum("no,ni->oi", tiny, tiny)
            tiny.clamp_(max=1)

    found = {
        "large products": Workload(lambda: matrix @ matrix, large**3),
        "small products": Workload(lambda: matrices @ matrices, many * small**3),
        "convolutions": Workload(lambda: torch.conv_transpose2d(images, kernels, padding=1),
                                 images.numel() * kernels.numel() // small),
        "bytes": Workload(lambda: target.copy_(source), 2 * length * dtype.itemsize),
        "calls": Workload(calls, CALLS),
        "fresh bytes": Workload(lambda: torch.empty_like(source).fill_(1), length * dtype.itemsize),
    }
    if has_onednn(device, dtype):
        found["products by oneDNN"] = Workload(lambda: onednn_linear(matrix, matrix), large**3)
    return found


def medians(workloads: Mapping[str, Workload], timer: Timer) -> dict[str, float]:
    """Units per second of each workload."""
    for workload in workloads.values():
        workload.run()  # warm: threads started, kernels chosen
    seconds: dict[str, list[float]] = {name: [] for name in workloads}
    for number in range(ROUNDS):
        if number >= FEWEST and sum(map(sum, seconds.values())) > PATIENCE:
            break
        for name, workload in workloads.items():
            seconds[name].append(timer(workload.run))
    return {name: workload.units / statistics.median(seconds[name]) for name, workload in workloads.items()}


def _machine(rates: Mapping[str, float]) -> Machine:
    """Rounded: two runs on a quiet machine should write the same file."""
    rounded = {name: float(f"{rate:.2g}") for name, rate in rates.items()}
    return Machine(rounded["large products"], rounded["small products"], rounded["bytes"],
                   float(f"{1 / rates['calls']:.2g}"), kernel_per_second=rounded["convolutions"],
                   fresh_bytes_per_second=rounded["fresh bytes"],
                   linear_per_second=rounded.get("products by oneDNN", 0.0))
