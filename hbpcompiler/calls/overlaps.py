"""Which tensors have numbers in the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether one place in memory is several numbers of the tensor, as where it is expanded."""
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride <= reach:
            places = _places(tensor)
            return len(places.unique()) < len(places)
        reach += stride * (length - 1)
    return False


def sharing(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Positions (earlier, later) of any two that share memory; ordered by the later one's."""
    extents = sorted((tensor.data_ptr(), _end(tensor), at) for at, tensor in enumerate(tensors) if tensor.numel())
    found = list[tuple[int, int]]()
    open_ones = list[tuple[int, int]]()
    for start, end, at in extents:
        open_ones = [(other_end, other) for other_end, other in open_ones if other_end > start]
        for _, other in open_ones:
            if _meet(tensors[other], tensors[at]):
                found.append((min(at, other), max(at, other)))
        open_ones.append((end, at))
    yield from sorted(found, key=lambda pair: (pair[1], pair[0]))


def _end(tensor: Tensor) -> int:
    """The address behind its last number."""
    last = sum(stride * (length - 1) for stride, length in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.itemsize


def _meet(one: Tensor, other: Tensor) -> bool:
    """Of two whose extents overlap: slices of columns lie in each other's and share nothing."""
    if (one.is_contiguous() and other.is_contiguous()) or one.itemsize != other.itemsize:
        return True
    return bool(torch.isin(_places(one), _places(other)).any())


def _places(tensor: Tensor) -> Tensor:
    """The address of each number."""
    found = torch.tensor(tensor.data_ptr(), device="cpu")
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = found.unsqueeze(-1) + torch.arange(length, device="cpu") * (stride * tensor.itemsize)
    return found.flatten()
