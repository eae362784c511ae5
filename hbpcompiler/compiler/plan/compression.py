"""Where columns are compressed: when it pays (`derive.compression` does it)."""

from __future__ import annotations

import torch

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.limits import Limits

DTYPES = (torch.float32, torch.float64)
"""What torch factorises matrices in."""


def is_worth_it(columns: int, size: int, largest: int, limits: Limits) -> bool:
    """Of so many columns at a value of `size` numbers, if the largest on the rest of the way has `largest`."""
    return decided("compressed", lambda: columns >= limits.compressed_columns * size
                   and largest >= limits.compressed_growth * size)
