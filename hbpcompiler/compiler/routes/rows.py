"""Rows of an image, of which an operand's windows are made: where windows slide by one along the first axis.

The feature (channel, a, b) of the operand at position (y, q) is row y + dilation * a of the input, seen through windows
along the other axes only: of shape [N, (channel, b), rows, q].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.rule import Contraction, Op, Window, pad_axes, patches


@dataclass(frozen=True)
class Rows:
    """How rows arise from an operation's input `slot`."""

    slot: str
    channels: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    height: int
    """How many windows are above each other."""

    @property
    def count(self) -> int:
        return self.height + self.dilation[0] * (self.size[0] - 1)

    def of(self, op: Op) -> Any:
        """[N, features apart from the window's first axis, rows, positions in a row]."""
        across = patches(getattr(op, self.slot), (1, *self.size[1:]), self.stride, (1, *self.dilation[1:]),
                         self.before, self.after)
        return across.unflatten(2, (self.count, -1))


def rows_of(window: Window | None, contraction: Contraction, op: Op) -> Rows | None:
    """The rows that the operand is made of; None where its windows do not slide so, or where it is something else."""
    _, right, _ = contraction.letters
    features = [letter for letter in right if letter not in "np"]
    if window is None or contraction.operand is None or right != f"n{''.join(features)}p" or len(features) != 1:
        return None
    if window.stride[0] != 1 or window.size[0] == 1 or window.fill or len(op.sampled()) != 1:
        return None
    (slot,) = op.sampled()
    channels, *inner = op.shape(slot)
    outer = op.shape("output")[1:]
    after = window.after(inner, outer)
    if not _is_made_of_patches(window, contraction, op, slot, after):
        return None
    size, stride, dilation, before = map(tuple, (window.size, window.stride, window.dilation, window.before))
    return Rows(slot, channels, size, stride, dilation, before, tuple(after), outer[0])


def _is_made_of_patches(window: Window, contraction: Contraction, op: Op, slot: str, after: list[int]) -> bool:
    """Tried on numbered inputs of two channels, so that no operand is taken for what it is not."""
    channels, *sizes = op.shape(slot)
    shape = (1, min(channels, 2), *sizes)
    numbers = torch.arange(float(math.prod(shape)), device="cpu").reshape(shape)
    seen = patches(pad_axes(numbers, window.before, after), window.size, window.stride, window.dilation)
    assert contraction.operand is not None
    try:
        return torch.equal(contraction.operand(op.with_tensor(slot, numbers)), seen)
    except (AttributeError, RuntimeError):  # it reads other tensors, or wants all channels
        return False
