"""What passes may know besides the program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.compiler.cost.figures import DEFAULT, Machine
from hbpcompiler.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class Settings:
    """Handed to every pass."""

    arguments: Callable[[int], Sequence[Any]]
    """batch size -> the program's arguments as meta tensors"""
    machine: Machine = DEFAULT
    limits: Limits = DEFAULT_LIMITS
    dtype: torch.dtype = torch.float32
    """The model's."""
    curvature_dtype: torch.dtype | None = None
    """That of curvature columns; None: the model's."""
    by_pixels: bool = False
    """Whether images lie in memory pixel by pixel."""
    images: frozenset[str] = frozenset()
    """Names, in the state, of weights that then lie so too."""
    chunk: int = DEFAULT_LIMITS.typical_batch
    """Samples, or columns, that are treated at a time: of a typical batch, in a loop's body of its chunk."""
