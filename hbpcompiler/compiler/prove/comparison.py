"""What a program computed beside what it should have: the gap, and how much of it rounding explains.

A gap is allowed up to eps^0.55 of the largest number, eps being the dtype's rounding. Beyond that it is measured what
rounding does to these very numbers: the reference runs a few times more from parameters, buffers and inputs that were
moved by their last digit, as was the loss's slope, and the gap may be a few times as large as the differences between
these runs. So a gradient that is zero but for cancellation, a long sum, or a value near a kink raise no false alarm,
whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Key = tuple[str, str]
"""(quantity, parameter); for loss and output the parameter is empty, or the tensor's number."""
Numbers = Mapping[Key, Tensor]

EXPONENT = 0.55
"""1.6e-4 in float32, 2.4e-9 in float64: what kernels of other sizes and orders differ by, and no fault is so small."""
NOISE_RUNS = 8
LAST_DIGIT = 1e-6
DOUBLE = torch.finfo(torch.float64).eps
OF_THE_SLOPE = ("grad", "batch_grad", "loss", "output", "jacobian")
FEW_DIGITS = 64
"""In double precision so many last digits of a whole quantity are far below what any fault is."""
TIMES_NOISE = 8.0
"""The program rounds elsewhere than the model does, and often more: fused or reordered sums."""


@dataclass(frozen=True)
class Comparison:
    """One line of the table of errors."""

    quantity: str
    """a quantity's name, "loss" or "output" """
    parameter: str
    error: float
    """the largest difference"""
    largest: float
    """the largest of the numbers that are right, in absolute value"""
    allowed: float
    """the difference that rounding explains"""
    how: str = ""
    """what was compared, if not all numbers; or why nothing was"""
    compared: bool = True
    shapes: str = ""
    """the program's and the model's, where they are not the same"""
    lost: int = 0
    """how many of the numbers that are right by autograd are infinite or NaN"""

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference; also where nothing could be compared."""
        return not self.compared or self.error <= self.allowed

    @property
    def key(self) -> Key:
        return self.quantity, self.parameter

    @property
    def relative(self) -> float:
        """The error over the largest number; the error itself where all are zero."""
        return self.error / self.largest if self.largest else self.error


def left_out(quantity: str, parameter: str, why: str) -> Comparison:
    """A line that says why nothing was compared."""
    return Comparison(quantity, parameter, math.nan, math.nan, math.nan, why, compared=False)


def compared(found: Numbers, expected: Numbers, eps: float, again: Callable[[int], Numbers] | None = None,
             how: str = "", of_zero: float = 0.0) -> list[Comparison]:
    """A line for each key of `expected`; what `found` lacks counts as zero.

    `of_zero` is allowed where all numbers of a line should be exactly zero, of which no digit is the last.
    `again(run)` gives the expected numbers once more, with noise; it is asked only if a gap is beyond the first limit.
    """
    lines = []
    for (quantity, parameter), right in expected.items():
        own = found.get((quantity, parameter))
        error, largest = gap(own, right, strict=quantity in ("loss", "output"))
        allowed = max(eps**EXPONENT * largest if largest else of_zero, _without_digits(right if own is None else own))
        shapes = ""
        if own is not None and own.shape != right.shape:
            shapes = f"{list(own.shape)}, the model's is {list(right.shape)}"
        # A sum in which one number is not finite is not; to look at each takes another tensor's memory.
        lost = 0 if bool(right.sum().isfinite()) else int((~right.isfinite()).sum())
        beside = f"but for {lost} of {right.numel()}, infinite or NaN by autograd" if lost else ""
        lines.append(Comparison(quantity, parameter, error, largest, allowed, ", ".join(filter(None, [how, beside])),
                                shapes=shapes, lost=lost))
    lines = [replace(line, allowed=max(line.allowed, _of_whole(line, lines, eps))) for line in lines]
    if again is None or all(line.agrees for line in lines):
        return lines
    noise = dict.fromkeys(expected, 0.0)
    first = again(0)
    for run in range(1, NOISE_RUNS):
        moved = again(run)
        for key in expected:
            change = gap(moved.get(key), first[key], strict=False)[0] if key in first else 0.0
            noise[key] = max(noise[key], change if math.isfinite(change) else 0.0)
        lines = [replace(line, allowed=max(line.allowed, TIMES_NOISE * _noise_at(line, lines, noise)))
                 for line in lines]
        if all(line.agrees for line in lines):
            break
    return lines


def _without_digits(numbers: Tensor) -> float:
    """The least number of full precision: what lies below is lost digit by digit, earlier or later in a program than in
    the model. Not of small dtypes, whose gradients are hardly larger."""
    if not (numbers.is_floating_point() or numbers.is_complex()):
        return 0.0
    kind = torch.finfo(numbers.dtype)
    return kind.tiny if kind.eps <= LAST_DIGIT else 0.0


def _of_whole(line: Comparison, lines: Sequence[Comparison], eps: float) -> float:
    """The last digits of the largest number of the whole quantity: a bias before a softmax, whose gradient is zero but
    for rounding, is told from it at no cost. Not in small dtypes, where it would hide much; in single precision not of
    curvature, of which parameters have numbers of very different sizes."""
    if eps > LAST_DIGIT or (eps > DOUBLE and line.quantity not in OF_THE_SLOPE):
        return 0.0
    digits = FEW_DIGITS if eps <= DOUBLE else 1
    return digits * eps * max(other.largest for other in lines if other.quantity == line.quantity)


def _noise_at(line: Comparison, lines: Sequence[Comparison], noise: Mapping[Key, float]) -> float:
    """That of the numbers themselves; but numbers that are nothing but noise, as the gradient of a bias before a
    softmax, have what their whole quantity has: how far terms cancel is different in each program."""
    own = noise[line.key]
    if TIMES_NOISE * own < line.largest:
        return own
    return max(noise[other.key] for other in lines if other.quantity == line.quantity)


def gap(found: Tensor | None, expected: Tensor, strict: bool) -> tuple[float, float]:
    """(the largest difference, the largest expected number).

    Where the expected number is not finite, `strict` demands the same; otherwise nothing is compared there.
    """
    if not expected.numel():
        return 0.0 if found is None or found.shape == expected.shape else math.inf, 0.0
    right = _wide(expected)
    if found is None:
        found = torch.zeros_like(expected)
    if found.shape != expected.shape:
        return math.inf, _largest(right)
    own = _wide(found)
    difference = own - right
    if math.isfinite(most := _largest(difference)):
        return most, _largest(right)
    difference, finite = difference.abs(), right.isfinite()
    alike = (own == right) | (own.isnan() & right.isnan())
    differs = difference.where(finite & difference.isfinite(), torch.zeros_like(difference))
    wrong = (finite & ~own.isfinite()) | (~finite & ~alike if strict else torch.zeros_like(finite))
    return (math.inf if bool(wrong.any()) else float(differs.max())), _largest(right[finite])


def _largest(numbers: Tensor) -> float:
    """In absolute value; NaN where one is."""
    if not numbers.numel():
        return 0.0
    if numbers.is_complex():
        return float(numbers.abs().max())
    lowest, highest = numbers.aminmax()  # unlike abs(), without another tensor's memory
    return max(abs(float(lowest)), abs(float(highest)))


def _wide(numbers: Tensor) -> Tensor:
    """In a dtype in which differences are exact enough."""
    if numbers.is_complex() or numbers.dtype in (torch.float32, torch.float64):
        return numbers.detach()
    return numbers.detach().to(torch.float64)
