"""State of the thread, not of the model, that decides what a trace looks like: autocast, default dtype and device,
function modes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hbpcompiler.system.threads import function_modes

_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)
"""Whether it is on for some type of device: much faster than to ask for one by its name."""
Ambient = tuple[Any, ...]
"""The default dtype, the kinds of function modes, and per device type autocast's dtype, or None where it is off."""


def device_types(model: nn.Module) -> tuple[str, ...]:
    """Those whose autocast can meet the model."""
    return tuple(sorted({"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}))


def ambient(kinds: Sequence[str]) -> Ambient:
    """The state that this thread is in."""
    if not _any_autocast():
        return (torch.get_default_dtype(), function_modes(), *(None,) * len(kinds))
    return (torch.get_default_dtype(), function_modes(),
            *[torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds])


def autocasts(surroundings: Ambient) -> bool:
    """Whether autocast is on for some type of device."""
    return any(surroundings[2:])


def around_traces() -> tuple[Any, ...]:
    """What else of this thread's state a trace may read, and a call of a program does not."""
    return torch.get_default_device(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@contextlib.contextmanager
def without_autocast(kinds: Sequence[str]) -> Iterator[None]:
    """For a program whose casts are operations of its own."""
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
