"""`pytest --device cuda`: what tests make themselves lies there, while the library meets torch's ordinary default.

So is a user's program on a GPU: models and batches are moved to it, and nothing says where else tensors are made.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

HERE = str(Path(__file__).parent)
TORCH = str(Path(torch.__file__).parent)


def _of_a_test() -> bool:
    """Whether the innermost code that is not torch's is a test's."""
    frame = sys._getframe(2)
    while frame is not None and (frame.f_code.co_filename.startswith(TORCH) or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(HERE)


class MadeByTests(TorchFunctionMode):
    """Tensors that a test makes without a device are made on this one; with a generator, where it draws."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func not in _device_constructors() or given.get("device") is not None or not _of_a_test():
            return func(*args, **given)
        generator = given.get("generator")
        if generator is not None:
            return func(*args, **given, device=generator.device).to(self.device)
        given["device"] = self.device
        return func(*args, **given)


def made_by_tests(device: str) -> None:
    """From now on."""
    MadeByTests(device).__enter__()


def heal() -> None:
    """A failed assertion of a kernel spoils the process for good: it ends, and pytest-xdist starts another."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(1)
