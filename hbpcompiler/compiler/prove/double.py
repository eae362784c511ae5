"""Second derivatives by autograd, an entry at a time, and each sample's share of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.noise import Moves
from hbpcompiler.compiler.prove.own_step import (
    Found,
    Loss,
    Pass,
    forward,
    moved_parameters,
    seen,
    unchanged,
)
from hbpcompiler.compiler.prove.weights import SampleWeights, losses_alone
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.compiler.trace.with_state import loss_at, ordinary_mode
from hbpcompiler.rules.shared.twice import right_derivatives


def double(model: nn.Module, loss: Loss, batch: Batch, draws: Draws, use: Callable[[Double], Found],
           noise: Moves | None = None, weights: SampleWeights | None = None) -> Found:
    """`use` of the derivatives of one forward pass, of the loss with these weights of its samples."""
    moved = noise.moved if noise is not None else torch.clone
    buffers = {name: moved(value.detach()) for name, value in model.named_buffers()}
    given = batch.of([moved(tensor) for tensor in batch.tensors])
    with (unchanged(model, loss), drawing(draws), ordinary_mode(), twice_differentiable(),
          moved_parameters(model, moved) as (parameters, instead)):
        def meet(run: Pass) -> Found:
            if noise is not None:
                run = replace(run, loss=run.loss + noise.of_slope(run.loss, run.outputs, batch.samples))
            return use(Double(run, loss, parameters, weights))

        return forward(model, loss, given, buffers, seen(meet, model, instead), instead)


@contextmanager
def twice_differentiable(cudnn: bool = False) -> Iterator[None]:
    """Without fused attention and, if not `cudnn`, without cuDNN, whose recurrent kernels have no second derivative,
    and without functions of torch that have a wrong one."""
    recurrent = nullcontext() if cudnn else torch.backends.cudnn.flags(enabled=False)
    with sdpa_kernel(SDPBackend.MATH), recurrent, right_derivatives():
        yield


class AtOutputs:
    """The loss as a function of those of the model's outputs that vary with its parameters."""

    def __init__(self, outputs: Sequence[Tensor], structure: Structure, target: Any, loss: Loss) -> None:
        self.tensors, self.structure, self.target = list(outputs), structure, target
        self.varying = [number for number, tensor in enumerate(outputs) if tensor.requires_grad]
        self.outputs = [outputs[number] for number in self.varying]
        self.leaves = [output.detach().clone().requires_grad_() for output in self.outputs]
        tensors = list(outputs)
        for number, leaf in zip(self.varying, self.leaves, strict=True):
            tensors[number] = leaf
        self.slopes = derivatives(loss_at(loss, structure.build(tensors), target), self.leaves, keep=True)
        """Of the loss in each of them, to be differentiated again."""


class Double(AtOutputs):
    """Derivatives of a forward pass; made by `double`."""

    def __init__(self, run: Pass, loss: Loss, parameters: Mapping[str, Tensor],
                 weights: SampleWeights | None = None) -> None:
        super().__init__(run.outputs, run.structure, run.target, loss)
        self.loss, self.parameters, self.weights = run.loss, parameters, weights
        self.run, self.own = run, loss
        if weights is not None:
            self.slopes = weights.times(self.slopes, self.varying)

    def losses(self, axes: Sequence[int | None], kind: str) -> Tensor | None:
        """[N]: each sample's, times its weight; the loss itself where single samples do not make it up; None where it
        is not known with these weights."""
        if self.weights is not None:
            return self.weights.losses(self.run, self.own)
        own = [axis for axis in axes if axis is not None]
        alone = losses_alone(self.run, self.own, own, kind) if len(own) == len(axes) else None
        return self.loss.detach() if alone is None else alone

    def shares(self, axes: Sequence[int], samples: int) -> Mapping[str, Tensor]:
        """[N, *theta]: what flows back from each sample's slices of the outputs; `axes`, where their samples are."""
        return self._by_sample(self.slopes, axes, samples)

    def _by_sample(self, slopes: Sequence[Tensor], axes: Sequence[int], samples: int) -> Mapping[str, Tensor]:
        """What of these slopes in the outputs flows back from each sample's slices."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        for n in range(samples):
            total = torch.zeros((), device=self.loss.device, dtype=self.loss.dtype)
            for number, output, slope in zip(self.varying, self.outputs, slopes, strict=True):
                own = output.select(axes[number], n) * slope.detach().select(axes[number], n)
                total = total + own.sum()
            found = derivatives(total, list(self.parameters.values()))
            for name, gradient in zip(self.parameters, found, strict=True):
                rows[name].append(gradient)
        return {name: torch.stack(found) for name, found in rows.items()}

    def hessian(self, name: str, entry: int) -> Tensor:
        """One entry of the diagonal of the Hessian of L."""
        (row,) = derivatives(self.gradients[name].flatten()[entry], [self.parameters[name]])
        return row.flatten()[entry].detach()

    def ggn(self, name: str, entry: int) -> Tensor:
        """One entry of the diagonal of the GGN of L."""
        return self._through(self, name, entry)

    def unsaturated(self, name: str, entry: int) -> Tensor:
        """The same if all outputs were zero: the size of the numbers p and p^2 of which a saturated softmax has the
        difference p (1 - p) alone, so that nothing but their last digits is left. Zero for losses whose curvature
        grows with the outputs, on either side: exp(o) is no difference of anything."""
        at_zero, beyond = (self._through(self._elsewhere(times), name, entry) for times in (0.0, -1.0))
        most = max(output.numel() for output in self.outputs) * at_zero.abs()  # of p (1 - p) against 1/C (1 - 1/C)
        return at_zero if bool(beyond.abs() <= most) else torch.zeros_like(at_zero)

    def _elsewhere(self, times: float) -> AtOutputs:
        """The loss where the outputs are so many times as large."""
        moved = [(times * output.detach()).requires_grad_(output.requires_grad) for output in self.tensors]
        return AtOutputs(moved, self.structure, self.target, self.own)

    def _through(self, at: AtOutputs, name: str, entry: int) -> Tensor:
        """v^T H v, where v is the outputs' derivative in this entry and H the Hessian of the loss in outputs."""
        weights, weighted = self._weighted
        directions = derivatives(weighted[name].flatten()[entry], weights)
        if not any(slope.requires_grad for slope in at.slopes):
            return torch.zeros_like(self.loss.detach())
        along: Any = sum((slope * direction).sum()
                         for slope, direction in zip(at.slopes, directions, strict=True))
        pulled = derivatives(along, at.leaves)
        parts = [(direction * after).sum() for direction, after in zip(directions, pulled, strict=True)]
        return torch.stack(parts).sum().detach()

    @cached_property
    def gradients(self) -> Mapping[str, Tensor]:
        at = list(self.parameters.values())
        if self.weights is None:
            return dict(zip(self.parameters, derivatives(self.loss, at, keep=True), strict=True))
        slopes = self.weights.times(derivatives(self.loss, self.outputs, keep=True), self.varying)
        found = torch.autograd.grad(self.outputs, at, slopes, create_graph=True, allow_unused=True,
                                    materialize_grads=True)
        return dict(zip(self.parameters, found, strict=True))

    def ggn_shares(self, direction: Mapping[str, Tensor], axes: Sequence[int], samples: int) -> Mapping[str, Tensor]:
        """[N, *theta]: the share of each of the first samples in the GGN of L, times one direction in the parameters.

        The GGN of all parameters that have a part of the direction.
        """
        inputs, weighted = self._weighted
        along: Any = sum((weighted[name] * part).sum() for name, part in direction.items())
        columns = derivatives(along, inputs)
        pulled = [torch.zeros_like(column) for column in columns]
        if any(slope.requires_grad for slope in self.slopes):
            met: Any = sum((slope * column).sum() for slope, column in zip(self.slopes, columns, strict=True))
            pulled = derivatives(met, self.leaves)
        return self._by_sample(pulled, axes, samples)

    @cached_property
    def _weighted(self) -> tuple[list[Tensor], Mapping[str, Tensor]]:
        """Weights u of the outputs, and the gradients of sum u * output, whose derivatives in u are the outputs'."""
        weights = [torch.zeros_like(output).requires_grad_() for output in self.outputs]
        total: Any = sum((weight * output).sum() for weight, output in zip(weights, self.outputs, strict=True))
        found = derivatives(total, list(self.parameters.values()), keep=True)
        return weights, dict(zip(self.parameters, found, strict=True))


def derivatives(value: Tensor, at: Sequence[Tensor], keep: bool = False) -> list[Tensor]:
    """Of a number; zeros where it does not depend on something. keep: to be differentiated again."""
    if not value.requires_grad:
        return [torch.zeros_like(tensor) for tensor in at]
    return list(torch.autograd.grad(value, list(at), retain_graph=True, create_graph=keep, allow_unused=True,
                                    materialize_grads=True))
