"""Which tensors are other objects in one memory: a program finds some of its tensors by where their numbers lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def place(tensor: Tensor) -> Any:
    """Equal for tensors that show the same numbers of the same memory."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # what torch.func has left behind in a module: a tensor of a transformation that is over
        return id(tensor)
    return address, tensor.dtype, tuple(tensor.shape), tensor.stride()


def shared(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the tensors that lie in one place, for each place of several."""
    at = defaultdict[Any, list[int]](list)
    for number, tensor in enumerate(tensors):
        at[place(tensor)].append(number)
    return [numbers for numbers in at.values() if len(numbers) > 1]
