"""Functions of torch whose second derivative is wrong where the kernel of their first has a derivative of its own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norms taken over all axes but one; of torch's own kernel, for the first and the last axis, double
    backward is off by a quarter and more in v (2.13, 2.14)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


IN_OTHERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "_weight_norm"): weight_norm,
    ("torch.nn.utils.weight_norm", "_weight_norm"): weight_norm,
}
"""By the module and name under which torch's own code finds one: the same in what is differentiated right."""


@contextmanager
def right_second_derivatives() -> Iterator[None]:
    """Meanwhile those functions are in the place of torch's."""
    before = {(path, name): getattr(importlib.import_module(path), name) for path, name in IN_OTHERS}
    try:
        for (path, name), function in IN_OTHERS.items():
            setattr(importlib.import_module(path), name, function)
        yield
    finally:
        for (path, name), function in before.items():
            setattr(importlib.import_module(path), name, function)
