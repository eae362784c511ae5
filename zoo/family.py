"""A family of models: one small member with random weights, a loss and a batch of two samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5
SAMPLES = 2


@dataclass(frozen=True)
class Case:
    """What is compiled: `model(**inputs)` or `model(inputs)`, and the loss of its output and `target`."""

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    inputs: Any
    target: Tensor


@dataclass(frozen=True)
class Family:
    library: str
    name: str
    make: Callable[[], Case]

    @property
    def title(self) -> str:
        return f"{self.library}:{self.name}"

    def case(self) -> Case:
        """In float64 and eval mode, its parameters moved off the zeros and ones that they start with."""
        torch.manual_seed(0)
        made = self.make()
        model = made.model.double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        return made


def images(pixels: int, *, channels: int = 3, frames: int | None = None) -> Tensor:
    shape = [SAMPLES, channels, *([frames] if frames else []), pixels, pixels]
    return torch.randn(shape, dtype=torch.float64)


def labels() -> Tensor:
    return torch.tensor([0, 3])
