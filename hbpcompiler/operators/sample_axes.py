"""Where the samples lie in what a model returns, found by running it: on three rows of a batch and on two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import shown
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.operators.passes import Passes

FEWER, MORE = 2, 3
"""Rows of the two runs."""
TOLERANCE = 1e-3
"""Of outputs that should be the same, relative to the largest: they are summed in another order."""


@dataclass(frozen=True)
class SampleAxis:
    """An axis of samples, perhaps with positions merged into it."""

    axis: int
    positions: int = 1
    samples_first: bool = True
    """Whether the positions of a sample lie side by side."""

    def front(self, tensor: Tensor, before: int = 0) -> Tensor:
        """Samples as the first axis behind `before` others: [*before, N, ...]."""
        axis = self.axis + before
        if self.positions > 1:
            sizes = (-1, self.positions) if self.samples_first else (self.positions, -1)
            tensor = tensor.unflatten(axis, sizes)
            axis += not self.samples_first
        return tensor.movedim(axis, before)

    def back(self, tensor: Tensor, before: int = 0) -> Tensor:
        """What `front` was given."""
        axis = self.axis + before
        if self.positions == 1:
            return tensor.movedim(before, axis)
        tensor = tensor.movedim(before, axis + (not self.samples_first))
        return tensor.flatten(axis, axis + 1)


def sample_axes(passes: Passes, batch: Batch) -> list[SampleAxis | None]:
    """For each tensor that the model returns; None for one that does not grow with the batch.

    Raises UnsupportedOpError for outputs that mix samples, and for what cannot be told.
    """
    refuse_batch_norm(passes.model)
    modules = list(passes.model.modules())
    own, runs = _runs(passes, batch, []), _runs(passes, batch, modules)
    if _shapes(own) != _shapes(runs):
        # It returns something in training alone, or otherwise: only torch's own modules, dropout, are in eval mode.
        runs = _runs(passes, batch, [each for each in modules if type(each).__module__.partition(".")[0] == "torch"])
    return [_axis(number, *pair) for number, pair in enumerate(zip(runs[0], runs[1], strict=True))]


def _runs(passes: Passes, batch: Batch, without_draws: Sequence[nn.Module]) -> list[list[Tensor]]:
    """The outputs of MORE rows and of FEWER, with these modules in eval mode."""
    found = []
    for rows in (MORE, FEWER):
        few = Batch(batch.rows(rows), batch.layout)
        with torch.no_grad(), passes.careful(), passes.held(), passes.drawn(0, batch):
            for module in without_draws:
                module.training = False
            found.append([output.detach() for output in passes.outputs(few)[0]])
    return found


def _shapes(runs: list[list[Tensor]]) -> list[list[torch.Size]]:
    return [[output.shape for output in outputs] for outputs in runs]


class SampleAxes:
    """Where the samples are in the outputs, by the form of a batch."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self._found: dict[Any, list[SampleAxis | None]] = {}

    def of(self, batch: Batch) -> list[SampleAxis | None]:
        if batch.form not in self._found:
            self._found[batch.form] = sample_axes(self.passes, batch)
        return self._found[batch.form]

    def forget(self) -> None:
        """The model may be another one now."""
        self._found.clear()


def refuse_batch_norm(model: nn.Module) -> None:
    names = [name for name, module in model.named_modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training]
    if names:
        raise UnsupportedOpError(f"batch norm in training mode mixes samples ({', '.join(names)}), so that neither a "
                                 "Fisher matrix nor several batches as one are defined; call model.eval(), or give "
                                 "one batch and kind 'ggn' or 'hessian'")


def _axis(number: int, more: Tensor, fewer: Tensor) -> SampleAxis | None:
    if more.shape == fewer.shape:
        return None
    grown = [axis for axis in range(more.dim()) if more.shape[axis] != fewer.shape[axis]]
    positions = fewer.shape[grown[0]] // FEWER
    if len(grown) > 1 or positions * MORE != more.shape[grown[0]]:
        raise UnsupportedOpError(f"output {number} of the model is {shown(fewer)} for {FEWER} samples and "
                                 f"{shown(more)} for {MORE}: it is unclear where the samples are")
    for axis in (SampleAxis(grown[0], positions), SampleAxis(grown[0], positions, False)):
        if _same(axis.front(more)[:FEWER], axis.front(fewer)):
            return axis
    raise UnsupportedOpError(f"the model mixes samples, or draws anew: output {number} of a sample depends on the "
                             "other samples of its batch")


def _same(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return True
    largest = float(one.abs().max()) if one.numel() else 0.0
    return float((one - other).abs().max()) <= TOLERANCE * largest if largest else not bool(other.any())


def known(axes: Sequence[SampleAxis | None], varying: Sequence[int]) -> list[SampleAxis]:
    """Those of the outputs that vary with the parameters."""
    found = []
    for number in varying:
        axis = axes[number]
        if axis is None:
            raise UnsupportedOpError(f"output {number} of the model has no axis of samples, so that it belongs to no "
                                     "sample")
        found.append(axis)
    return found
