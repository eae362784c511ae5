"""What a step costs, as polynomials in the batch size N: arithmetic, memory traffic, peak extra memory and calls.

A `Machine` turns them into seconds. Its figures are constants, so that one model gives one file everywhere, unless
they were measured with `hbp tune` (see `calibrate`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

ZERO_COST = sympy.Integer(0)
ONE_CALL = sympy.Integer(1)


@dataclass(frozen=True)
class Machine:
    """How fast a device is. By default a 2-core CPU's orders of magnitude: only their ratios decide between routes."""

    multiply_adds_per_second: float = 8e10
    """in one large matrix product."""
    batched_per_second: float = 8e10
    """multiply-adds per second in a batch of small matrix products."""
    bytes_per_second: float = 1.5e10
    """moved to and from memory, beyond the caches."""
    seconds_per_call: float = 8e-6
    """of one call into torch that computes nothing to speak of."""
    kernel_per_second: float = 1.1e11
    """multiply-adds per second in torch's own kernels for convolutions."""
    fresh_bytes_per_second: float = 4e9
    """of tensors so large that the allocator asks the system for their pages each time (see `meter`)."""
    linear_per_second: float = 0.0
    """multiply-adds per second in one large product by oneDNN; 0 where that is no choice."""

    @property
    def products_per_second(self) -> float:
        """Multiply-adds per second in one large product, by whatever is faster."""
        return max(self.multiply_adds_per_second, self.linear_per_second)


DEFAULT = Machine()
ONEDNN = Machine(linear_per_second=1.3e11)
"""The same for float32, where torch was built with oneDNN."""
GPU = Machine(multiply_adds_per_second=2e13, batched_per_second=5e12, bytes_per_second=2e12, kernel_per_second=2e13,
              fresh_bytes_per_second=2e12)
"""Orders of magnitude of one in a data centre, in single precision: a call waits as long as on a CPU, and what it does
then takes a hundredth."""
DEFAULTS = (DEFAULT, ONEDNN, GPU)


@dataclass(frozen=True)
class Resources:
    """What the planner may count on: the machine, the thresholds that fit it, and how much memory temporaries may take
    at which batch size."""

    machine: Machine = DEFAULT
    limits: Limits = DEFAULT_LIMITS
    temporaries: int | None = None
    """bytes; None: as the machine's cache suggests, whatever the batch size."""
    batch: int = 1
    """the batch size at which `temporaries` is to be kept; without it, it decides nothing."""


UNLIMITED = Resources()


@dataclass(frozen=True)
class Cost:
    """Multiply-adds, bytes moved, peak bytes of temporaries, and calls into torch."""

    multiply_adds: Any = ZERO_COST
    traffic: Any = ZERO_COST
    memory: Any = ZERO_COST
    calls: Any = ONE_CALL
    batched: Any = ZERO_COST
    """those of the multiply-adds that are made in batches of small products."""
    kernel: Any = ZERO_COST
    """those that are made in torch's own kernels for convolutions."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.traffic + other.traffic,
            sympy.Max(self.memory, other.memory) if self.memory != other.memory else self.memory,
            self.calls + other.calls,
            self.batched + other.batched,
            self.kernel + other.kernel,
        )

    def seconds(self, batch: int = DEFAULT_LIMITS.typical_batch, machine: Machine = DEFAULT) -> float:
        """Predicted time: arithmetic, traffic and calls add up, a pessimistic view of their overlap."""
        adds = (self.multiply_adds, self.batched, self.kernel)
        multiply_adds, batched, kernel = (number(each, batch) for each in adds)
        if multiply_adds == float("inf"):
            return multiply_adds
        return (
            (multiply_adds - batched - kernel) / machine.products_per_second
            + batched / machine.batched_per_second
            + kernel / machine.kernel_per_second
            + number(self.traffic, batch) / machine.bytes_per_second
            + number(self.calls, batch) * machine.seconds_per_call
        )


NOTHING_TO_DO = Cost(calls=ZERO_COST)


def total(costs: Iterable[Cost]) -> Cost:
    """Of steps one after the other: their memory is the largest of theirs."""
    return sum(costs, NOTHING_TO_DO)


def number(expression: Any, batch: int) -> float:
    """A polynomial's value at a batch size."""
    if isinstance(expression, int | float):
        return float(expression)
    return _number(expression, batch)


@lru_cache(maxsize=4096)
def _number(expression: Any, batch: int) -> float:
    return float(sympy.sympify(expression).xreplace({N: sympy.Integer(batch)}))


def chunk_length(bytes_each: int, resources: Resources) -> int:
    """How many items, `bytes_each` big, make a chunk that stays in cache (and in the memory for temporaries)."""
    cache, allowed = resources.limits.cache_bytes, resources.temporaries
    limit = cache if allowed is None else min(cache, allowed)
    return decided("chunk", lambda: max(1, limit // max(1, bytes_each)))
