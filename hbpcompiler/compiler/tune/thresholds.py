"""Measures a machine's thresholds: one workload at growing sizes, against another that does the same work differently.

Sizes double, and what is kept is one of them, so that two runs on a quiet machine find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.program.kernels import has_onednn
from hbpcompiler.compiler.program.products import onednn_linear
from hbpcompiler.compiler.tune.calibrate import Timer, stopwatch
from hbpcompiler.limits import DEFAULT_LIMITS, Limits, default_limits

FILLED = tuple(2**power for power in range(20, 28))
"""Bytes of tensors that are made and filled."""
SQUARED = tuple(2**power for power in range(18, 27))
"""Bytes of tensors that are squared and summed."""
ROWS = (32, 64, 96, 128, 192, 256, 384, 512)
"""Of square matrices that are multiplied."""
WORTH_TIMING_BYTES, WORTH_TIMING_ADDS = 2**22, 2**21
"""Smaller work is repeated until it is as much, in one measurement."""
ROUNDS, FEWEST, PATIENCE = 9, 2, 2.0
"""Rounds at most and at least, and the seconds after which no further one begins."""


@dataclass(frozen=True)
class Work:
    """Something that is timed: what is done, at which size, and how often in one measurement."""

    name: str
    size: int
    run: Callable[[], Any]
    times: int

    def __call__(self) -> None:
        for _ in range(self.times):
            self.run()


def measure_limits(device: torch.device, dtype: torch.dtype = torch.float32, timer: Timer | None = None) -> Limits:
    """The default limits with those that could be measured here (`MEASURED`), in a few seconds; a CPU's alone.

    `timer` is for tests: it calls the `Work` it is given, and says how many seconds that took.
    """
    if device.type != "cpu":
        return default_limits(device.type)
    with torch.no_grad():
        seconds = _fastest(_works(dtype), timer or stopwatch(device))
    found: dict[str, Any] = {
        "recycled_bytes": last_recycled({size: seconds["new", size] / seconds["kept", size] for size in FILLED}),
        "cache_bytes": last_cached({size: size / seconds["squares", size] for size in SQUARED}),
    }
    if has_onednn(device, dtype):
        ratios = {rows: seconds["product by oneDNN", rows] / seconds["product", rows] for rows in ROWS}
        rows = first_faster(ratios)
        found |= {} if rows is None else {"onednn_multiply_adds": rows**3}
    return replace(DEFAULT_LIMITS, **found)


def last_recycled(ratios: Mapping[int, float]) -> int:
    """The largest size, of those below all at which a new tensor takes half as long again as one that is kept."""
    sizes = sorted(ratios)
    last = sizes[-1]
    for size in reversed(sizes):
        if ratios[size] <= 1.5:
            break
        last = size // 2
    return last


def last_cached(speeds: Mapping[int, float]) -> int:
    """The largest size that is worked on at no less than half the highest speed: `cached_speedup` is 4 in between."""
    best = max(speeds.values())
    return max(size for size, speed in speeds.items() if speed >= best / 2)


def first_faster(ratios: Mapping[int, float]) -> int | None:
    """The smallest size from which on each takes less time than the other way; None where the largest does not."""
    found = None
    for size in sorted(ratios, reverse=True):
        if ratios[size] >= 1:
            break
        found = size
    return found


def _works(dtype: torch.dtype) -> list[Work]:
    ones = torch.ones(FILLED[-1] // dtype.itemsize, dtype=dtype, device="cpu")
    works = []
    for size in FILLED:
        part, times = ones[: size // dtype.itemsize], max(1, WORTH_TIMING_BYTES // size)
        works += [Work("new", size, _filling(part, new=True), times), Work("kept", size, _filling(part), times)]
    for size in SQUARED:
        part = ones[: size // dtype.itemsize]
        works.append(Work("squares", size, _squaring(part), max(1, WORTH_TIMING_BYTES // size)))
    if has_onednn(torch.device("cpu"), dtype):
        for rows in ROWS:
            matrix, times = torch.ones(rows, rows, dtype=dtype, device="cpu"), max(1, WORTH_TIMING_ADDS // rows**3)
            works.append(Work("product", rows, _multiplying(matrix, torch.matmul), times))
            works.append(Work("product by oneDNN", rows, _multiplying(matrix, onednn_linear), times))
    return works


def _filling(tensor: Tensor, new: bool = False) -> Callable[[], Any]:
    return lambda: (torch.empty_like(tensor) if new else tensor).fill_(1)


def _squaring(tensor: Tensor) -> Callable[[], Any]:
    return lambda: tensor.square_().sum()


def _multiplying(matrix: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
    return lambda: multiply(matrix, matrix)


def _fastest(works: Sequence[Work], timer: Timer) -> dict[tuple[str, int], float]:
    """Seconds of each work done once, the least of all rounds: what disturbs a machine must look like no threshold."""
    for work in works:
        work.run()  # warm: threads started, kernels chosen
    found = {(work.name, work.size): float("inf") for work in works}
    spent = 0.0
    for number in range(ROUNDS):
        if number >= FEWEST and spent > PATIENCE:
            break
        for work in works:
            seconds = timer(work)
            spent += seconds
            found[work.name, work.size] = min(found[work.name, work.size], seconds / work.times)
    return found
