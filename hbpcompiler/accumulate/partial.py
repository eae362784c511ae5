"""Sums of a few batches in the program's own dtype, on their way to float64 totals.

For a small batch a float64 total of a symmetric matrix is more memory to move than the matrix is work to make. So the
program makes the product in a sum of its own dtype (`added_product_triangle_`), and every BATCHES batches that sum is
added to the total. It is rounded as the program would round one batch of all their samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.program.sums import added_
from hbpcompiler.limits import DEFAULT_LIMITS

BATCHES = 8


class Partials:
    """By what they are sums of, as the totals that they belong to."""

    def __init__(self, sums: Mapping[Any, Tensor] | None = None, batches: int = 0, *,
                 most: int = DEFAULT_LIMITS.partial_bytes) -> None:
        self.sums: dict[Any, Tensor] = dict(sums or {})
        self.most = most
        """Bytes that all of them may take; what does not fit is added to its total at once."""
        self.batches = batches
        """How many are in since the totals had them last."""

    def of(self, key: Any, total: Tensor, dtype: torch.dtype | None) -> Tensor:
        """What a program of this dtype is to add to: such a sum, or the total itself. Programs of half precision add to
        totals, which have the digits that their own dtype lacks."""
        if key in self.sums:
            return self.sums[key]
        held = sum(partial.nbytes for partial in self.sums.values())
        single = dtype == torch.float32 and total.dtype == torch.float64
        if not single or held + total.nbytes // 2 > self.most:
            return total
        self.sums[key] = torch.zeros_like(total, dtype=dtype)
        return self.sums[key]

    def count(self, totals: Mapping[Any, Tensor]) -> None:
        """One more batch is in."""
        if self.sums:
            self.batches += 1
            if self.batches == BATCHES:
                self.add_to(totals)

    def add_to(self, totals: Mapping[Any, Tensor]) -> None:
        """The totals have all of it then."""
        if not self.batches:
            return  # for zeros it would take as long
        for key, partial in self.sums.items():
            added_(totals[key], partial, 1.0, 1.0)
            partial.zero_()
        self.batches = 0
