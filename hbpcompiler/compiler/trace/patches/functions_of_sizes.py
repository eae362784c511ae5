"""Functions of the batch's size that Python and torch would make plain numbers of it for: the same of a symbol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor

from hbpcompiler.compiler.trace.patches.replaced import replaced

_LINSPACE: Callable[..., Tensor] = torch.linspace


def _root(number: Any, /) -> Any:
    return torch.sym_sqrt(number) if isinstance(number, SymInt | SymFloat) else _SQRT(number)


_SQRT = math.sqrt


def _linspace(start: Any, end: Any, steps: Any = None, **named: Any) -> Tensor:
    """In place of torch's, which takes the size as a plain number: for numbers, in a floating-point dtype."""
    dtype = named.get("dtype") or torch.get_default_dtype()
    plain = all(isinstance(number, int | float) for number in (start, end)) and dtype.is_floating_point
    if not isinstance(steps, SymInt) or not plain or named.keys() - {"dtype", "device"}:
        return _LINSPACE(start, end, steps, **named)
    count: Any = steps  # torch's stubs know no symbols
    places = torch.arange(count, dtype=dtype, device=named.get("device"))
    found: Tensor = start + places * ((end - start) / torch.sym_max(count - 1, 1))
    return found


@contextmanager
def functions_of_sizes() -> Iterator[None]:
    """Meanwhile math.sqrt and torch.linspace take symbols."""
    with replaced(math, "sqrt", _root), replaced(torch, "linspace", _linspace):
        yield
