"""Gradients in half precision beside a backward of the user's own, by their length.

Rounding in half precision leaves seven percent of a gradient's largest number open, of single entries. It moves them to
either side, and what they come to along the gradient as a whole it leaves nearly as it is: there a derivative that is
another one by a factor is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.comparison import Comparison, Key, Numbers
from hbpcompiler.compiler.prove.twin import GRAD

DIGITS = 2.0
"""Times the dtype's rounding is what a length may be off by in any case."""
RUNS = 8
"""With noise: the largest change of theirs is allowed. Right programs have a third of it at most."""


def in_length(lines: list[Comparison], found: Numbers, right: Numbers, eps: float,
              again: Callable[[int], Numbers]) -> list[Comparison]:
    """The lines; where a gradient's length is off by more than rounding explains, this instead. `again(run)` gives the
    right ones with noise."""
    shares = {line.key: _share(found.get(line.key), right[line.key]) for line in lines if line.quantity == GRAD}
    off = {key: abs(share - 1) for key, share in shares.items() if abs(share - 1) > DIGITS * eps}
    if not off:
        return lines
    noise = [{key: _share(numbers.get(key), right[key]) for key in off} for numbers in map(again, range(RUNS))]
    allowed = {key: max(DIGITS * eps, *(abs(run[key] - 1) for run in noise)) for key in off}
    return [_line(line, off, allowed) for line in lines]


def _line(line: Comparison, off: Mapping[Key, float], allowed: Mapping[Key, float]) -> Comparison:
    key = line.key
    if not line.agrees or key not in off or off[key] <= allowed[key]:
        return line
    return replace(line, error=off[key], largest=1.0, allowed=allowed[key], how="of the gradient's length")


def _share(found: Tensor | None, right: Tensor) -> float:
    """How much of the right numbers is in those found: 1 where they are the same, or none is there."""
    wide = right.to(torch.float64)
    length = float(wide.square().sum())
    if not length:
        return 1.0
    return 0.0 if found is None else float((found.to(torch.float64) * wide).sum()) / length
