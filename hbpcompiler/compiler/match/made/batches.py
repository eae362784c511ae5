"""Other batches than the first, for functions of which nothing is known but what they make of a batch.

With one sample far from the others: what couples samples beyond a limit, as a maximum, a cut or a hinge over pairs
does, shows where the limit is between them. With other targets, masks, labels and buffers: those of the first batch may
be the ones that leave nobody out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.trace.graph import Value

SIZES = tuple(10.0**power for power in range(-4, 9))
"""Of one sample beside the others', by decades: a limit may begin anywhere."""
MANY = 100_000
"""Numbers from which on every sixth decade is enough, as each batch takes long."""
PATIENCE = 20
"""Times the lines of Python that the first batch took: what is repeated until it converges need not, on numbers that
nobody gave it."""

Draw = Callable[[Tensor], Tensor]


class EndlessError(Exception):
    """A function takes far longer on this batch than on the first."""


@dataclass(frozen=True)
class Given:
    """One argument of the function, and its tensor in the first batch."""

    value: Value
    tensor: Tensor
    active: bool

    @property
    def moves(self) -> bool:
        return self.active and self.value.batched

    @property
    def changes(self) -> bool:
        """Whether it may be another one at another call."""
        return self.value.batched or may_change(self.value)


def may_change(value: Value) -> bool:
    """Of a value of the state: all but numbers that the code has."""
    return not value.key.startswith("constant:")


def others(given: Sequence[Given]) -> Iterator[list[Tensor]]:
    """Batches of the first one's shapes."""
    yield _drawn(given, lambda tensor: tensor * (0.5 + torch.rand_like(tensor) / 2))
    yield _drawn(given, _between)
    # What is out of a function's domain may end a process on a GPU, and is an error on a CPU.
    given = [replace(argument, tensor=argument.tensor.cpu()) for argument in given]
    beside = any(argument.changes and not argument.moves for argument in given)
    for of_others in (_between, _flags, _partly_unknown, torch.randn_like) if beside else ():
        yield _drawn(given, _between, of_others)
    for number, size in enumerate(_sizes(given)):
        for large in (one_far(size, number), *_positive(given, size, number)):
            yield _drawn(given, large)
            if beside:
                yield _drawn(given, large, large)


def one_far(size: float, number: int) -> Draw:
    """Numbers around zero, those of one sample `size` times as large."""
    def draw(tensor: Tensor) -> Tensor:
        found = torch.randn_like(tensor)
        if found.dim():
            found[number % len(found)] *= size
        return found

    return draw


def lines_of(run: Callable[[], Any]) -> int:
    """How many lines of Python this runs."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    with _at_each_line(step):
        run()
    return count


@contextmanager
def with_patience(lines: int) -> Iterator[None]:
    """Raises EndlessError in what runs far more lines of Python than these."""
    left = PATIENCE * (lines + 100)

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise EndlessError

    with _at_each_line(step):
        yield


@contextmanager
def _at_each_line(step: Callable[[], None]) -> Iterator[None]:
    def follow(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            step()
        return follow

    before = sys.gettrace()  # a debugger's, which sees nothing of what is tried out
    sys.settrace(follow)
    try:
        yield
    finally:
        sys.settrace(before)


def _sizes(given: Sequence[Given]) -> Sequence[float]:
    return SIZES if numbers_in(given) < MANY else SIZES[::6]


def numbers_in(given: Sequence[Given]) -> int:
    """Of all arguments together."""
    return sum(argument.tensor.numel() for argument in given)


def _positive(given: Sequence[Given], size: float, number: int) -> list[Draw]:
    """Numbers that are not negative, where the first batch has none: a function may not take any."""
    far = one_far(size, number)
    floating = [argument.tensor for argument in given if argument.changes and argument.tensor.is_floating_point()]
    return [] if all(tensor.lt(0).any() for tensor in floating) else [lambda tensor: far(tensor).abs()]


def _drawn(given: Sequence[Given], moving: Draw, others: Draw | None = None) -> list[Tensor]:
    found = []
    for argument in given:
        tensor = argument.tensor.detach()
        draw = moving if argument.moves else others if argument.changes else None
        if argument.changes and tensor.dtype is torch.bool:
            tensor = torch.rand(tensor.shape, device=tensor.device) < 0.5
        elif draw is not None and tensor.is_floating_point() and tensor.numel():
            tensor = draw(tensor)
        elif argument.value.batched and not tensor.is_floating_point():  # labels of others, as there may be no more
            tensor = tensor[torch.randint(len(tensor), (len(tensor),), device=tensor.device)]
        found.append(tensor)
    return found


def _between(tensor: Tensor) -> Tensor:
    """Inside (0, 1), where all functions of shares and probabilities are smooth."""
    return 0.2 + 0.6 * torch.rand_like(tensor)


def _flags(tensor: Tensor) -> Tensor:
    """0 and 1, both in a column if it is one of numbers."""
    found = torch.rand_like(tensor).round()
    if found.dim():
        found[0], found[-1] = 1, 0
    return found


def _partly_unknown(tensor: Tensor) -> Tensor:
    """NaN at one place, as missing labels are marked."""
    found = _between(tensor)
    found[(0,) * found.dim()] = torch.nan
    return found
