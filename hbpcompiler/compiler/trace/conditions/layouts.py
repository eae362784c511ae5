"""How a batch's numbers lie in memory: told apart as far as code may ask for it, and made again for other numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Order = tuple[tuple[int, int | None], ...]
"""The axes from the innermost to the outermost, each with its step where that is not all there is of those within."""


def order_of(tensor: Tensor) -> Order:
    """Equal for tensors that lie alike, whatever the number of samples is."""
    found: list[tuple[int, int | None]] = []
    within = 1
    for axis, step in _by_step(tensor):
        found.append((axis, None if step == within else step))
        within = step * tensor.shape[axis]
    return tuple(found)


def _by_step(tensor: Tensor) -> list[tuple[int, int]]:
    steps = tensor.stride()
    return sorted(enumerate(steps), key=lambda entry: (entry[1], -entry[0]))


def lies_plainly(tensor: Tensor) -> bool:
    """Whether it lies as a new tensor does."""
    return order_of(tensor) == tuple((axis, None) for axis in reversed(range(tensor.dim())))


def laid_out(tensor: Tensor, order: Order) -> Tensor:
    """A copy that lies so, of perhaps another number of samples."""
    steps, within = [0] * tensor.dim(), 1
    for axis, step in order:
        steps[axis] = within if step is None else 0 if step == 0 else max(step, within)
        within = max(within, steps[axis] * tensor.shape[axis])
    extent = 1 + sum((length - 1) * step for length, step in zip(tensor.shape, steps, strict=True))
    if not tensor.numel():
        return tensor.clone()
    made = tensor.new_zeros(extent).as_strided(tensor.shape, steps)
    repeated = [axis for axis, step in enumerate(steps) if step == 0 and tensor.shape[axis] > 1]
    writable, numbers = made, tensor
    for axis in repeated:
        writable, numbers = writable.narrow(axis, 0, 1), numbers.narrow(axis, 0, 1)
    with torch.no_grad():
        writable.copy_(numbers)
    return made.detach()


def orders_of(tensors: Any) -> tuple[Order, ...]:
    """Of each of them."""
    return tuple(map(order_of, tensors))
