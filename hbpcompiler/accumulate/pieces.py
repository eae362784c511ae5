"""Adding tensors in place to totals of another dtype, in pieces that stay in the processor's cache.

On a CPU torch converts a whole tensor before it adds it, a copy that goes through memory twice: a piece's copy does
not. Other devices convert in the kernel that adds, and take tensors whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 2**16
"""Numbers of a piece, for each thread."""
SMALL = 2**15
"""Up to so many, torch's own conversions are no matter: what counts is the number of calls."""


def add_compensated(total: Tensor, lost: Tensor, value: Tensor, factor: float, *, piece: int = PIECE) -> None:
    """The same, where what an addition rounds off enters with the next one (Kahan 1965)."""
    for own, rest, part in _pieces(piece, total, lost, value):
        rest.add_(part, alpha=factor)
        before = own.clone()
        own.add_(rest)
        rest.sub_(own - before)


def mirrored(matrix: Tensor) -> Tensor:
    """A symmetric matrix, or several, by the upper triangle."""
    return matrix.triu() + matrix.triu(1).mT


def merge_spread(squares: Tensor, mean: Tensor, count: int, new_squares: Tensor, new_mean: Tensor, new: int,
                 of_squares: float = 1.0, of_mean: float = 1.0, *, piece: int = PIECE, small: int = SMALL) -> None:
    """Sums of squares about their mean, and that mean, of `count` and `new` samples together, in place of the first.

    Chan, Golub and LeVeque (1983), which cancels nothing. The second group's enter times `of_squares` and `of_mean`.
    Where the first has no samples, what it held is written over.
    """
    if not count:
        squares.copy_(new_squares).mul_(of_squares)
        mean.copy_(new_mean).mul_(of_mean)
        return
    share = new / (count + new)
    if squares.numel() <= small:
        back = torch.sub(mean, new_mean, alpha=of_mean)
        squares.addcmul_(back, back, value=count * share).add_(new_squares, alpha=of_squares)
        mean.sub_(back, alpha=share)
        return
    memory: Tensor | None = None
    for own_squares, own_mean, part_squares, part_mean in _pieces(piece, squares, mean, new_squares, new_mean):
        if memory is None or memory.shape != own_mean.shape:  # the last piece's
            memory = torch.empty_like(own_mean)
        away = memory.copy_(part_mean)
        if of_mean != 1:
            away.mul_(of_mean)
        away.sub_(own_mean)
        own_squares.addcmul_(away, away, value=count * share)
        own_mean.add_(away, alpha=share)
        own_squares.add_(memory.copy_(part_squares), alpha=of_squares)


def _pieces(piece: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same pieces of each, of so many numbers for each thread."""
    size = piece * torch.get_num_threads()
    cut = tensors[0].numel() > size and all(tensor.device.type == "cpu" and tensor.is_contiguous()
                                            for tensor in tensors)
    if not cut:
        yield tensors
        return
    yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
