"""What is said of one call argument, and what a call's arguments are checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.clipping import FLAT

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Call:
    """What a call's arguments are checked against."""

    samples: int
    device: torch.device
    quantities: tuple[str, ...]
    """of the program"""
    parameters: Mapping[str, torch.Size]
    """The shapes of the model's parameters, by name."""
    clipping: str = FLAT
    """The style of clipped gradients."""
    clipped: tuple[str, ...] = ()
    """Names of the parameters whose gradients are clipped."""
    dtype: torch.dtype = torch.float32
    """of the model"""


Sizes = Mapping[str, tuple[int, ...]]
"""What a program asks of a dict of tensors: by name, all lengths but those of the batch and of a call's own choice."""


@dataclass(frozen=True)
class Argument:
    """One call argument. `check(value, call)` is what the program gets; it raises InputError."""

    name: str
    annotation: str
    """Its type in the generated file."""
    check: Callable[[Any, Call], Any]
    default: str | None = None
    """In the generated signature; None: a call has to give it."""
    always: bool = False
    """Whether every program has it; otherwise those of the quantities that name it."""
    of_samples: bool = False
    """Whether it is a tensor that begins with the sample axis."""
    given_as: str = ""
    """How a call names it, if not as the program does."""
    stand_in: Callable[[int, Mapping[str, Tensor], Sizes, int], Any] = lambda samples, state, sizes, vectors: None
    """(samples, the program's parameters and buffers, sizes, vectors) -> a value to run it on, on the meta device if
    they are there: the default where there is one, so that costs are those of a plain call; of so many vectors."""
    fits: Callable[[Any, Sizes], list[str]] = lambda value, sizes: []
    """What does not fit the program, once there is one."""


def listed(items: Sequence[Any]) -> str:
    return ", ".join(map(str, items))


def shown(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)
