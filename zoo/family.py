"""A family of models: one small member with random weights, a loss and a batch of two samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 5
SAMPLES = 2
LARGEST = 3.0
"""Of a random network's outputs: the softmax of hundreds is saturated, and its Hessian rounds to nothing."""


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
    make_small: Callable[[], Case] | None = None
    """The same for images of fewer pixels, which the model may be unable to take."""

    @property
    def title(self) -> str:
        return f"{self.library}:{self.name}"

    def case(self, *, small: bool = False) -> Case:
        """In float64 and eval mode, its parameters moved off the zeros and ones that they start with; small: with as
        few pixels as the family takes."""
        if small and self.make_small is not None:
            try:
                return _prepared(self.make_small)
            except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError):
                pass  # the model's own word that it needs more
        return _prepared(self.make)


def _prepared(make: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    made = make()
    model = made.model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        output = model(**made.inputs) if isinstance(made.inputs, dict) else model(made.inputs)
    if isinstance(output, Tensor) and output.abs().max() > LARGEST:
        return replace(made, loss=tempered(made.loss, LARGEST / float(output.abs().max())))
    return made


def tempered(loss: Callable[[Any, Any], Tensor], scale: float) -> Callable[[Any, Any], Tensor]:
    """The loss of `scale` times the output."""

    def of_scaled(output: Tensor, target: Tensor) -> Tensor:
        return loss(output * scale, target)

    return of_scaled


def images(pixels: int, *, channels: int = 3, frames: int | None = None) -> Tensor:
    shape = [SAMPLES, channels, *([frames] if frames else []), pixels, pixels]
    return torch.randn(shape, dtype=torch.float64)


def labels() -> Tensor:
    return torch.tensor([0, 3])
