"""Python's own backward passes that are the derivative on one batch and need not be on another.

A hook that clips does nothing while gradients are small; a straight-through clamp is a plain one while nothing is cut
off. A derivative is linear in the loss, and is one wherever the numbers lie: where there are hooks or custom functions,
the gradient is compared again with the loss times large and small numbers, and with the numbers that a step begins with
many times as large and as small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import EXPONENT, LAST_DIGIT, Comparison, Numbers, compared
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.noise import Noise
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
    """In the place of noise: parameters and buffers so many times as large, and inputs and targets; with noise."""

    parameters: float
    inputs: float
    noise: Noise | None = None

    def moved(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            tensor = tensor * self.parameters
        return tensor if self.noise is None else self.noise.moved(tensor)

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        """A saturated slope, p - 1, has the rounding of 1."""
        return torch.zeros_like(loss) if self.noise is None else self.noise.of_slopes_of(1.0, loss, outputs)

    def batch(self, batch: Batch, moved: float = 1.0) -> Batch:
        """The inputs, but for what `moved` multiplies them by; powers of two round nothing."""
        times = self.inputs / moved
        return batch.of([tensor * times if tensor.is_floating_point() else tensor for tensor in batch.tensors])

    def named(self, tensors: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
        return {name: self.moved(tensor) if name in names else tensor for name, tensor in tensors.items()}

    def __str__(self) -> str:
        if self.parameters == self.inputs:
            return f"with parameters and inputs times {self.parameters:g}"
        which, times = ("parameters", self.parameters) if self.inputs == 1 else ("inputs", self.inputs)
        return f"with {which} times {times:g}"


STRETCHES = (Stretched(4.0, 4.0), Stretched(64.0, 1.0), Stretched(1.0, 64.0), Stretched(1024.0, 1.0),
             Stretched(1.0, 1024.0), Stretched(1 / 64, 1 / 64))
"""In half precision the first alone."""


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
    """Lines that are others where numbers are larger or smaller, of the first stretch that has some; `program` gives
    its gradients of a batch, with a state."""
    for moves in STRETCHES if eps <= LAST_DIGIT else STRETCHES[:1]:
        try:
            lines = _stretched(candidate, batch, draws, eps, program, moves)
        except Exception:  # whatever a model or a program raises on numbers that nobody gave it
            continue
        here = {key: float(gradient.abs().max()) for key, gradient in right.items() if gradient.numel()}
        found = [line for line in lines if not line.agrees and line.error > CLEAR * line.largest > (
            CLEAR * eps**EXPONENT * here.get(line.key, 0.0))]
        if found and not any(line.lost for line in lines):
            return found
    return []


def _stretched(candidate: Candidate, batch: Batch, draws: Draws, eps: float,
               program: Callable[[Batch, Mapping[str, Tensor]], Numbers], moves: Stretched) -> list[Comparison]:
    def own(noise: Noise | None = None) -> OwnStep:
        given = moves.batch(batch, moves.parameters)
        return own_step(candidate.model, candidate.loss, given, draws, replace(moves, noise=noise))

    step = own()
    if step.loss is None or not bool(step.loss.isfinite()):
        return []
    names = {*trained(candidate.model), *copied_buffers(candidate.model)}
    found = program(moves.batch(batch), moves.named(candidate.state, names))
    return compared(found, gradients(step), eps, lambda run: gradients(own(Noise(eps, run))), str(moves))


def gradients(step: OwnStep) -> dict[tuple[str, str], Tensor]:
    return {(GRAD, name): gradient for name, gradient in step.gradients.items()}
