"""Small modules and losses that stand between Laplace's conventions and `hbp.compile`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class Mapped(nn.Module):
    """A model that takes one mapping of a class of its own (transformers' BatchEncoding), here as a dict."""

    def __init__(self, model: nn.Module, kind: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, entries: dict[str, Any]) -> Any:
        return self.model(self.kind(entries))


class LastLayer(nn.Linear):
    """A linear layer with another's parameters, and without that one's hooks."""

    def __init__(self) -> None:
        super().__init__(1, 1, device="meta")

    def like(self, layer: nn.Linear) -> LastLayer:
        """This layer, with the parameters that the other has now."""
        if self.weight is not layer.weight or self.bias is not layer.bias:
            self.weight, self.bias = layer.weight, layer.bias
        self.out_features, self.in_features = self.weight.shape
        return self


class PerPosition(nn.Module):
    """A classification loss of outputs [N, C], or of [N, *positions, C] where each position is classified.

    (torch's own cross-entropy has classes second; Laplace, whose Jacobians are of outputs, has them last.)
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if output.dim() <= 2:
            return self.loss(output, target)
        probabilities = target.is_floating_point()
        return self.loss(output.flatten(0, -2), target.flatten(0, -2) if probabilities else target.flatten())


def total(output: Tensor, target: Tensor) -> Tensor:
    """What stands for a loss where only outputs are differentiated."""
    return output.sum()


def selected(output: Tensor, column: Tensor) -> Tensor:
    """The sum over samples of one output of each, the `column` [N] of [N, C]."""
    return output.gather(1, column[:, None]).sum()
