"""What happens to the numbers that a step begins with: their own rounding, say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Moves(Protocol):
    """What happens to all numbers that a step begins with."""

    def moved(self, tensor: Tensor) -> Tensor:
        """In the place of a parameter, a buffer, an input."""

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        """What is added to the loss."""


@dataclass(frozen=True)
class Noise:
    """Numbers moved by their own rounding: each one up or down by `size` times itself."""

    size: float
    seed: int

    def moved(self, tensor: Tensor) -> Tensor:
        """Floating-point tensors only; others as they are."""
        if not tensor.is_floating_point():
            return tensor
        factors = self._factors.to(tensor.device, tensor.dtype)
        numbers = tensor.numel()
        return tensor * factors.repeat(numbers // len(factors) + 1)[:numbers].view(tensor.shape)

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        """What rounding in the loss's own slope adds to the loss, in first order.

        Where that slope is zero throughout, its terms have cancelled without a trace (a softmax over one class), and
        are taken to be those of a mean over samples of a loss without units: 1/N.
        """
        largest = _largest_slope(loss, outputs)
        return self.of_slopes_of(largest or 1 / max(samples, 1), loss, outputs)

    def of_slopes_of(self, largest: float, loss: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The same of slopes of this size."""
        total = torch.zeros_like(loss)
        generator = torch.Generator().manual_seed(self.seed)
        for output in outputs:
            if not output.requires_grad:
                continue
            output = torch.view_as_real(output) if output.is_complex() else output
            # not signs alone, which would cancel in few samples
            moves = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu").to(output)
            total = total + (output * moves).sum() * (self.size * largest)
        return total

    @cached_property
    def _factors(self) -> Tensor:
        """Random ones near one; as many as no length of a model is likely to divide."""
        generator = torch.Generator().manual_seed(self.seed)
        signs = 2 * torch.randint(0, 2, (8191,), generator=generator, device="cpu") - 1
        return 1 + self.size * signs.double()


def _largest_slope(loss: Tensor, outputs: Sequence[Tensor]) -> float:
    """Of the loss in the model's outputs."""
    reached = [output for output in outputs if output.requires_grad]
    if not reached:
        return 0.0
    slopes = torch.autograd.grad(loss, reached, retain_graph=True, allow_unused=True, materialize_grads=True)
    return max((float(slope.abs().max()) for slope in slopes if slope.numel()), default=0.0)
