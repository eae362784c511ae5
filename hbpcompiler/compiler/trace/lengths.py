"""len(tensor) while tracing: the batch's size as a symbol, where Python would insist on a number."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor


@contextmanager
def symbolic_lengths() -> Iterator[None]:
    """Meanwhile the built-in `len` gives a traced tensor's shape[0]; for all else, and in other threads, it is itself.

    `Tensor.__len__` cannot: Python turns what it returns into a number, which would fix the batch's size.
    """
    plain = builtins.len

    def length(item: Any, /) -> Any:
        if type(item) is FakeTensor and item.dim():
            return item.shape[0]
        return plain(item)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain
