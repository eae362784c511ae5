"""Whether a function keeps samples apart on other batches than the first one, too.

What couples samples beyond a limit, as a cut of their mean does, shows where one of them is far from the others; what
couples those that a mask takes, with other masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from hbpcompiler.compiler.match.made.probe import NotDerivableError, check_value
from hbpcompiler.rule.composite import Composite
from hbpcompiler.seeded import seed_global

SIZES = (1e-3, 1e1, 1e3, 1e5, 1e8)
"""Of one sample beside the others'."""
FAILURES = (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError)
"""What a function raises that does not take such numbers."""

Draw = Callable[[Tensor], Tensor]


def check_elsewhere(function: Composite, tensors: Sequence[Tensor]) -> None:
    """Raises NotDerivableError where samples meet on another batch, though not on this one."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_global(0, tensors[0].device)
        for others in _others(function, tensors):
            try:
                expected = function(*others)
            except FAILURES:
                continue
            if expected.isfinite().all():
                _check_value(function, others, expected)


def _check_value(function: Composite, tensors: Sequence[Tensor], expected: Tensor) -> None:
    try:
        check_value(function, tensors, expected)
    except NotDerivableError as error:
        raise NotDerivableError(f"{error}, in another batch than this one") from None


def _others(function: Composite, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    own = [tensor for tensor, batched in zip(tensors, function.batched, strict=True) if batched]
    if any(tensor.dtype is torch.bool for tensor in own):
        yield _drawn(function, tensors, torch.bool, lambda tensor: torch.rand(tensor.shape, device=tensor.device) < 0.5)
    # What is out of a function's domain may end a process on a GPU, and is an error on a CPU.
    near = [tensor.cpu() for tensor in tensors]
    for dtype in dict.fromkeys(tensor.dtype for tensor in own if tensor.is_floating_point() and len(tensor) > 1):
        for number, size in enumerate(SIZES):
            far = partial(_like, draw=one_far(size, number))
            yield _drawn(function, near, dtype, far)


def _drawn(function: Composite, tensors: Sequence[Tensor], dtype: torch.dtype, draw: Draw) -> list[Tensor]:
    return [draw(tensor) if batched and tensor.dtype is dtype else tensor
            for tensor, batched in zip(tensors, function.batched, strict=True)]


def _like(tensor: Tensor, draw: Draw) -> Tensor:
    """Without negative numbers where the first batch has none: a function may not take any."""
    found = draw(tensor)
    return found if tensor.lt(0).any() else found.abs()


def one_far(size: float, number: int) -> Draw:
    """Numbers around zero, those of one sample `size` times as large."""
    def draw(tensor: Tensor) -> Tensor:
        found = torch.randn_like(tensor)
        if found.dim():
            found[number % len(found)] *= size
        return found

    return draw
