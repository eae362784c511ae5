"""What a step costs, as polynomials in the batch size N: arithmetic, memory traffic and peak extra memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from hbpcompiler.graph import N

# A 2-core CPU's orders of magnitude; only their ratios decide between routes.
MULTIPLY_ADDS_PER_SECOND = 8e10
BYTES_PER_SECOND = 1.5e10
SECONDS_PER_CALL = 8e-6
CACHE_BYTES = 2**21
"""A chunk's temporaries should stay below this, so that squaring and summing find them in cache."""
TYPICAL_BATCH = 64
"""Routes are compared at this batch size; one program serves every batch size."""
ZERO_COST = sympy.Integer(0)
ONE_CALL = sympy.Integer(1)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds, bytes moved, peak bytes of temporaries, and calls into torch."""

    multiply_adds: Any = ZERO_COST
    traffic: Any = ZERO_COST
    memory: Any = ZERO_COST
    calls: Any = ONE_CALL

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.traffic + other.traffic,
            sympy.Max(self.memory, other.memory) if self.memory != other.memory else self.memory,
            self.calls + other.calls,
        )

    def seconds(self, batch: int = TYPICAL_BATCH) -> float:
        """Predicted time: arithmetic, traffic and calls add up, a pessimistic view of their overlap."""
        return (
            number(self.multiply_adds, batch) / MULTIPLY_ADDS_PER_SECOND
            + number(self.traffic, batch) / BYTES_PER_SECOND
            + number(self.calls, batch) * SECONDS_PER_CALL
        )


def number(expression: Any, batch: int) -> float:
    """A polynomial's value at a batch size."""
    if isinstance(expression, int | float):
        return float(expression)
    return _number(sympy.sympify(expression), batch)


@lru_cache(maxsize=4096)
def _number(expression: Any, batch: int) -> float:
    return float(expression.subs(N, batch))


def chunk_length(bytes_each: int, budget: int | None = None) -> int:
    """How many items, `bytes_each` big, make a chunk that stays in cache (and in the memory budget)."""
    limit = CACHE_BYTES if budget is None else min(CACHE_BYTES, budget)
    return max(1, limit // max(1, bytes_each))
