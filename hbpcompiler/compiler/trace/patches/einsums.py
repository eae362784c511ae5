"""torch.einsum of values and a matrix of parameters: the linear layer that it is.

A trace takes einsum apart into a batched product of matrices of one batch, in which a weight has one block of curvature
of all its numbers; a linear layer's has Kronecker factors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TORCHS = torch.einsum
_ELLIPSIS = 0xE000
"""Characters from here on, which no equation holds, stand for the axes of an ellipsis."""


def einsum_with_layers(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In place of torch's own; another that somebody has put in its place is left as it is."""
    if own is not _TORCHS:
        return own

    def run(*arguments: Any, **named: Any) -> Tensor:
        found = _as_linear(*arguments) if len(arguments) == 3 and not named else None
        if found is not None:
            return found
        with torch.backends.opt_einsum.flags(enabled=False):  # it counts samples, and the rows that a mask picks
            return own(*arguments, **named)

    return run


def _as_linear(equation: Any, first: Any, second: Any) -> Tensor | None:
    """The linear layer, as in "bti,oi->bto" or "...i,io->...o"; None if it is none that is said so plainly."""
    if not isinstance(equation, str) or not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return None
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not arrow or len(letters) != 2:
        return None
    if isinstance(first, nn.Parameter):
        first, second, letters = second, first, letters[::-1]
    if not isinstance(second, nn.Parameter) or isinstance(first, nn.Parameter) or second.dim() != 2:
        return None
    read, weight, made = letters[0], letters[1], output
    if "..." in read:
        around = "".join(chr(_ELLIPSIS + axis) for axis in range(first.dim() - len(read) + len("...")))
        read, made = read.replace("...", around), made.replace("...", around)
    return _layer(first, second, read, weight, made)


def _layer(x: Tensor, weight: Tensor, read: str, letters: str, made: str) -> Tensor | None:
    """Where one letter of the weight's takes the place of the other, and all else stays."""
    if len(letters) != 2 or len(set(read)) != len(read) or len(read) != x.dim():
        return None
    contracted = [letter for letter in letters if letter in read and letter not in made]
    kept = [letter for letter in letters if letter in made and letter not in read]
    if len(contracted) != 1 or len(kept) != 1 or read.replace(contracted[0], "") != made.replace(kept[0], ""):
        return None
    if x.shape[read.index(contracted[0])] != weight.shape[letters.index(contracted[0])]:
        return None  # one of the two is repeated
    if read[-1] == contracted[0] and made[-1] == kept[0]:
        return F.linear(x, weight) if letters[1] == contracted[0] else torch.matmul(x, weight)
    last = x.movedim(read.index(contracted[0]), -1)
    product = F.linear(last, weight) if letters[1] == contracted[0] else torch.matmul(last, weight)
    return product.movedim(-1, made.index(kept[0]))
