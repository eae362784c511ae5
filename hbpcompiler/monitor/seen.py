"""What the quantities of one step are made of: a compiled program's results, in the scale-free notation of the papers.

l_n are the samples' losses, g_n their gradients, N samples, and g = (1/N) sum_n g_n: of a mean loss its gradient, of a
summed one the N-th part of it. Sums are taken in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.result import Result

TINY = 1e-5
"""Of the mean variance, or curvature: what is added where one divides by those of single parameters."""


@dataclass
class Seen:
    """Handed to the functions of quantities."""

    step: int
    samples: int
    """N."""
    parameters: Mapping[str, Tensor]
    """The trainable ones, as they are now."""
    start: Mapping[str, Tensor]
    """As they were at the first step."""
    loss: Tensor
    """L of the batch."""
    gradient: Mapping[str, Tensor]
    """grad L, by parameter name; of those that reach the loss."""
    result: Result | None
    """What the compiled program gave: every quantity in `Tracked.needs`."""
    mean: bool
    """Whether the loss is a mean over samples, and not a sum."""
    optimizer: Any = None
    edges: tuple[Any, Any] = (None, None)
    """Of histograms: of gradients, of parameters; None: by magnitude."""
    largest_eigenvalue: Callable[[], float | None] = field(default=lambda: None)

    # -- sums over samples ---------------------------------------------------------------------------------------------

    def __getitem__(self, quantity: str) -> Mapping[str, Tensor]:
        """A compiled quantity, by parameter name."""
        assert self.result is not None
        return self.result[quantity]

    def of_mean(self, value: Tensor) -> Tensor:
        """Something of L as that of the mean of l_n."""
        return value if self.mean else value / self.samples

    @cached_property
    def own_gradient(self) -> Mapping[str, Tensor]:
        """grad L by the program that made the per-sample quantities."""
        return self["grad"]

    @cached_property
    def squared_gradient(self) -> float:
        """|g|^2."""
        norms = (torch.linalg.vector_norm(part, dtype=torch.float64) for part in self.own_gradient.values())
        return total(norm.square() for norm in norms) * (1 if self.mean else 1 / self.samples**2)

    @cached_property
    def squared_norms(self) -> Tensor:
        """|g_n|^2, [N]."""
        whole = torch.stack([part.double() for part in self["batch_l2"].values()]).sum(0)
        return whole * self.samples**2 if self.mean else whole

    @cached_property
    def slopes(self) -> Tensor:
        """g_n . g, [N]."""
        whole = torch.stack([part.double() for part in self["batch_inner"].values()]).sum(0)
        return whole * self.samples if self.mean else whole / self.samples

    @cached_property
    def losses(self) -> Tensor:
        """l_n, [N]."""
        assert self.result is not None
        return self.result.batch_loss.double()

    @property
    def spread(self) -> float:
        """sum_d var_d, the biased variance of the samples' gradients, summed over parameters: never negative."""
        found = float(self.squared_norms.mean()) - self.squared_gradient
        return max(found, 0.0)  # NaN stays NaN, in this order

    # -- parameter by parameter ----------------------------------------------------------------------------------------

    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """(g_d^2, var_d) of each parameter's entries; the variance is biased, and never negative."""
        found = []
        for name, second in self["second_moment"].items():
            squared = self.of_mean(self.own_gradient[name].double()).square()
            found.append((squared, (second.double() - squared).clamp(min=0)))
        return found

    def curvatures(self) -> list[tuple[Tensor, Tensor]]:
        """(second moment m2_d, h_d) of each parameter's entries, h the diagonal of the GGN of the mean of l_n."""
        diagonal = self["diag_ggn"]
        return [(second.double(), self.of_mean(diagonal[name].double()))
                for name, second in self["second_moment"].items()]


def total(parts: Any) -> float:
    """A sum of numbers in tensors."""
    whole = sum(parts, torch.zeros((), dtype=torch.float64, device="cpu"))
    return float(whole)


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each."""
    if not tensors:
        return {}
    found = torch.stack([torch.linalg.vector_norm(tensor.detach(), dtype=_wide(tensor)) for tensor in tensors.values()])
    return dict(zip(tensors, found.tolist(), strict=True))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
