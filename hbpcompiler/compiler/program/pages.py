"""Memory of large totals: in huge pages, where the system has them.

A Kronecker factor of a wide convolution has 85 MB. As new memory it costs 20,000 page faults, more than the product
that fills it; in pages of 2 MiB it costs 40.
"""

from __future__ import annotations

import contextlib
import mmap
from types import ModuleType

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def large_empty(x: Tensor, shape: list[int]) -> Tensor:
    """x.new_empty(shape), of a large total. hbpcompiler puts it into huge pages (Linux) when it runs this file."""
    return x.new_empty(shape)


def in_huge_pages(x: Tensor, shape: list[int]) -> Tensor:
    """x.new_empty(shape), on a CPU in memory that the system is asked to give in huge pages, if it knows them.

    The memory is the tensor's own and goes back to the system with it.
    """
    empty = x.new_empty(shape)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    plain = type(x) is Tensor and empty.device.type == "cpu" and empty.numel() > 0
    if advice is None or not plain or torch.compiler.is_compiling():
        return empty
    pages = mmap.mmap(-1, empty.numel() * empty.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: the pages are as good as any
        pages.madvise(advice)
    return torch.frombuffer(pages, dtype=x.dtype).view(shape)


def use_huge_pages(module: ModuleType) -> None:
    """In a loaded file, which knows torch alone and so makes its totals as usual."""
    if hasattr(module, large_empty.__name__):
        setattr(module, large_empty.__name__, in_huge_pages)
