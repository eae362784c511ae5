"""The model's own training step with weights of its samples: that of sum_n w_n l_n, over N for a mean loss.

The model knows no weights. But l_n depends on sample n's part of the outputs alone, so what flows back from that part
is multiplied with w_n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.prove.comparison import EXPONENT
from hbpcompiler.compiler.prove.own_step import Pass
from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.compiler.trace.with_state import loss_at

MOST_ALONE = 2048
"""Samples whose losses are computed one by one."""
NOT_ALONE = ("The loss is not compared: what the loss is of one sample alone does not make up that of the batch, so "
             "that the model has no weighted loss of its own.")


@dataclass(frozen=True)
class SampleWeights:
    """Weights of a batch's samples, and where each of the model's outputs has its samples."""

    numbers: Tensor
    axes: tuple[int, ...]
    kind: str
    """of the loss: "mean" or "sum" """

    def times(self, slopes: Sequence[Tensor], outputs: Sequence[int]) -> list[Tensor]:
        """Slopes of the loss in the outputs of these numbers, each sample's times its weight."""
        found = []
        for slope, number in zip(slopes, outputs, strict=True):
            shape = [1] * slope.dim()
            shape[self.axes[number]] = -1
            found.append(slope * self.numbers.to(slope.dtype).reshape(shape))
        return found

    def number(self, run: Pass) -> Tensor:
        """Has the first derivatives of the weighted loss, and another value."""
        reached = [number for number, output in enumerate(run.outputs) if output.requires_grad]
        outputs = [run.outputs[number] for number in reached]
        if not outputs or not run.loss.requires_grad:
            return run.loss.detach()
        slopes = torch.autograd.grad(run.loss, outputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        parts = [(output * slope).sum() for output, slope in
                 zip(outputs, self.times(slopes, reached), strict=True)]
        return torch.stack(parts).sum()

    def loss(self, run: Pass, own: Callable[..., Tensor]) -> Tensor | None:
        """The weighted loss of the losses of single samples; None where these do not make up the loss."""
        alone = self.losses(run, own)
        return None if alone is None else losses_together(alone, self.kind)

    def losses(self, run: Pass, own: Callable[..., Tensor]) -> Tensor | None:
        """[N]: w_n l_n; None where the l_n do not make up the loss."""
        alone = losses_alone(run, own, self.axes, self.kind)
        return None if alone is None else self.numbers.to(alone.dtype) * alone


def losses_alone(run: Pass, own: Callable[..., Tensor], axes: Sequence[int], kind: str) -> Tensor | None:
    """[N]: the loss of each sample alone; None where these do not make up the loss: with class weights, say, or where
    positions are left out of a mean."""
    lengths = {output.shape[axis] for output, axis in zip(run.outputs, axes, strict=True)}
    samples = next(iter(lengths), 0)
    if len(lengths) != 1 or not 0 < samples <= MOST_ALONE:
        return None
    with torch.no_grad():
        try:
            alone = torch.stack([_loss_of(run, own, axes, n) for n in range(samples)])
        except Exception:  # a loss need not take a batch of one
            return None
    allowed = torch.finfo(alone.dtype).eps ** EXPONENT * alone.abs().max()
    together = losses_together(alone, kind)
    if not abs(together - run.loss.detach()) <= allowed * (1 if kind == "mean" else samples):
        return None
    return alone


def losses_together(losses: Tensor, kind: str) -> Tensor:
    """The loss of the samples' own."""
    return losses.mean() if kind == "mean" else losses.sum()


def _loss_of(run: Pass, own: Callable[..., Tensor], axes: Sequence[int], n: int) -> Tensor:
    outputs = [output.narrow(axis, n, 1) for output, axis in zip(run.outputs, axes, strict=True)]
    target: Any = pytree.tree_map(lambda part: part[n : n + 1] if isinstance(part, Tensor) else part, run.target)
    alone: Tensor = loss_at(own, run.structure.build(outputs), target)
    return alone


def sample_axis(shape: Sequence[Any]) -> int | None:
    """Where the samples of an output are, if they have an axis of their own."""
    own = [axis for axis, length in enumerate(shape) if length == N]
    return own[0] if len(own) == 1 else None
