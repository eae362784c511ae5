"""Python's own backward passes that are the derivative on one batch and need not be on another.

A hook that clips does nothing while gradients are small; a straight-through clamp is a plain one while nothing is cut
off. A derivative is linear in the loss, and is one wherever the numbers lie: where there are hooks or custom functions,
the gradient is compared again with the loss times large and small numbers, and with all numbers that a step begins with
a few times as large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Numbers, compared
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.own_step import OwnStep, Pass, copied_buffers, own_step, trained
from hbpcompiler.compiler.prove.twin import GRAD
from hbpcompiler.compiler.trace.batch import Batch

TIMES = (2.0**20, 2.0**-20)
"""Powers of two, by which nothing is rounded."""
TIMES_IN_HALF = (2.0**4, 2.0**-4)
"""In float16, which has no room for more."""
CLEAR = 0.02
"""Of the largest number: far away rounding differs by more than here, a backward of another function by far more."""


@dataclass(frozen=True)
class Stretched:
    """In the place of noise: parameters, buffers and inputs a few times as large."""

    factor: float = 4.0

    def moved(self, tensor: Tensor) -> Tensor:
        return tensor * self.factor if tensor.is_floating_point() else tensor

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        return torch.zeros_like(loss)

    def batch(self, batch: Batch) -> Batch:
        return Batch(tuple(self.moved(tensor) for tensor in batch.tensors), batch.layout)

    def named(self, tensors: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
        return {name: self.moved(tensor) if name in names else tensor for name, tensor in tensors.items()}


def multiplied(candidate: Candidate, batch: Batch, draws: Draws, right: Numbers, eps: float) -> list[Comparison]:
    """Lines of the gradients `right` that are others where the loss is multiplied."""
    lines: list[Comparison] = []
    half = any(value.dtype == torch.float16 for value in candidate.matched.graph.values())
    for times in TIMES_IN_HALF if half else TIMES:
        def number(run: Pass, times: float = times) -> Tensor:
            return run.loss * times

        step = own_step(candidate.model, candidate.loss, batch, draws, of=number)
        lines += compared({key: right[key] for key in gradients(step)},
                          {key: gradient / times for key, gradient in gradients(step).items()}, eps,
                          how=f"with the loss times {times:.1g}")
    return [line for line in lines if not (line.agrees or line.lost)]


def stretched(candidate: Candidate, batch: Batch, draws: Draws, right: Numbers, eps: float,
              program: Callable[[Batch, Mapping[str, Tensor]], Numbers]) -> list[Comparison]:
    """Lines that are others where all numbers are larger; `program` gives its gradients of a batch, with a state."""
    moves = Stretched()
    names = {*trained(candidate.model), *copied_buffers(candidate.model)}
    try:
        step = own_step(candidate.model, candidate.loss, batch, draws, moves)
        found = program(moves.batch(batch), moves.named(candidate.state, names))
    except Exception:  # whatever a model or a program raises on numbers that nobody gave it
        return []
    lines = compared(found, gradients(step), eps, how=f"with parameters and inputs times {moves.factor:g}")
    here = {key: float(gradient.abs().max()) for key, gradient in right.items() if gradient.numel()}
    return [line for line in lines if not line.lost
            and line.error > CLEAR * line.largest > CLEAR**2 * here.get(line.key, 0.0)]


def gradients(step: OwnStep) -> dict[tuple[str, str], Tensor]:
    return {(GRAD, name): gradient for name, gradient in step.gradients.items()}
