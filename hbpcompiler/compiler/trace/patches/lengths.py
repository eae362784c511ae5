"""The batch's size as a symbol where Python would insist on a number: len(tensor), int(x.shape[0]), range(len(y))."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymFloat, SymInt
from torch._subclasses.fake_tensor import FakeTensor

from hbpcompiler.compiler.trace.patches.functions_of_sizes import functions_of_sizes


@contextmanager
def symbolic_lengths() -> Iterator[None]:
    """Meanwhile the built-in `len` gives a traced tensor's shape[0], and `divmod`, math.sqrt and torch.linspace take
    symbols; for all else, and in other threads, they are themselves.

    `Tensor.__len__` cannot: Python turns what it returns into a number, which would fix the batch's size.
    """
    plain, plain_divmod = builtins.len, builtins.divmod

    def length(item: Any, /) -> Any:
        if type(item) is FakeTensor and item.dim():
            return item.shape[0]
        return plain(item)

    def whole_and_rest(number: Any, divisor: Any, /) -> Any:
        if any(isinstance(item, SymInt | SymFloat) for item in (number, divisor)):
            return number // divisor, number % divisor
        return plain_divmod(number, divisor)

    builtins.len, builtins.divmod = length, whole_and_rest
    try:
        with functions_of_sizes():
            yield
    finally:
        builtins.len, builtins.divmod = plain, plain_divmod


class _AsItsBase(type):
    """Whatever is an instance or a subclass of the base counts as one of the class."""

    base: type

    def __instancecheck__(cls, item: Any) -> bool:
        return isinstance(item, cls.base)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, cls.base)


class _Int(int, metaclass=_AsItsBase):
    """int, but of a symbol for a whole number the symbol."""

    base = int

    def __new__(cls, *args: Any, **more: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], SymInt):
            return args[0]
        return int(*args, **more)


class _Float(float, metaclass=_AsItsBase):
    """float, but of a symbol for a number the symbol."""

    base = float

    def __new__(cls, *args: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], SymInt | SymFloat):
            return torch.sym_float(args[0])
        return float(*args)


class _Range(metaclass=_AsItsBase):
    """range, but up to a symbol the numbers as a tensor, which picks as they do: output[range(len(y)), y]."""

    base = range

    def __new__(cls, *args: Any) -> Any:
        if any(isinstance(item, SymInt) for item in args):
            return torch.arange(*args, device="cpu")  # as indices may be, wherever the tensor is
        return range(*args)


@contextmanager
def symbolic_numbers(spaces: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Meanwhile code with these globals has an `int`, a `float` and a `range` that leave symbols what they are.

    Neither SymInt.__int__ nor __float__ can: Python insists on a number there, which would fix the batch's size.
    """
    names: dict[str, Any] = {"int": _Int, "float": _Float, "range": _Range}
    own = [space for space in {id(space): space for space in spaces}.values() if not names.keys() & set(space)]
    for space in own:
        space |= names
    try:
        yield
    finally:
        for space in own:
            for name in names:
                del space[name]
