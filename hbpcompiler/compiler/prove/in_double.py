"""The same program in double precision, where single precision leaves a doubt.

A value within rounding of a kink (a ReLU's, a maximum's) falls to one side in the program and to the other in the
model, and each such value moves a gradient by a whole term. In a large batch there are many of them, in a program whose
sums run otherwise more than the noise of a few runs shows. In double precision there are next to none: what agrees
there is the same program, and what does not is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.comparison import Comparison, Numbers, gap
from hbpcompiler.compiler.prove.noise import Noise
from hbpcompiler.compiler.trace.batch import Batch

NEAR = 0.02
"""Of the largest number: a gap that terms at kinks may explain. A fault of single precision alone is larger."""
FARTHER = 2.0
"""Times as far from double precision as the model's own number is a program's may be."""
AS_NEAR = "as near to double precision as the model's own"
EXPLAINED = "in double precision it agrees: values at kinks"


@dataclass(frozen=True)
class Doubled:
    """In the place of noise: every number in double precision."""

    def moved(self, tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.dtype == torch.float32 else tensor

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        return torch.zeros_like(loss)

    def batch(self, batch: Batch) -> Batch:
        return batch.of([self.moved(tensor) for tensor in batch.tensors])

    def named(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors, and dicts of some."""
        return {name: self.named(value) if isinstance(value, Mapping) else
                self.moved(value) if isinstance(value, Tensor) else value for name, value in tensors.items()}


def as_near(lines: Sequence[Comparison], found: Numbers, right: Numbers, double: Callable[[], Numbers],
            ) -> list[Comparison]:
    """The lines, those that disagree as explained where the model's own numbers are no nearer to those in double
    precision than the program's: of a slope p - 1 that single precision has nothing of, each has another rounding."""
    wrong = [line for line in lines if not line.agrees and not line.shapes and line.key in found]
    if not wrong:
        return list(lines)
    try:
        truth = double()
    except Exception:  # whatever a model raises on numbers of another dtype
        return list(lines)
    near = {line.key for line in wrong if line.key in truth and gap(found[line.key], truth[line.key], True)[0]
            <= FARTHER * gap(right[line.key], truth[line.key], True)[0] < math.inf}
    return [replace(line, allowed=line.error, how=AS_NEAR) if line.key in near else line for line in lines]


@dataclass(frozen=True)
class NoisyInDouble(Doubled):
    """Numbers moved by the rounding of single precision, in double precision: what rounding does to numbers as such."""

    noise: Noise

    def moved(self, tensor: Tensor) -> Tensor:
        return self.noise.moved(super().moved(tensor))

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        """The slope of a saturated loss is a difference, p - 1, of which single precision has the last digits of 1."""
        return self.noise.of_slopes_of(1 / max(samples, 1), loss, outputs)


def explained(lines: Sequence[Comparison], again: Callable[[Doubled], Sequence[Comparison]]) -> list[Comparison]:
    """The lines, those that disagree by little as explained if all agree in double precision.

    `again` compares there; where program or model do not run in double precision (constants in single precision, no
    room), nothing is explained.
    """
    wrong = [line for line in lines if not line.agrees]
    if not wrong or any(line.error > NEAR * line.largest for line in wrong):
        return list(lines)
    try:
        double = again(Doubled())
    except Exception:  # whatever a model or a program raises on numbers of another dtype
        return list(lines)
    if not double or not all(line.agrees for line in double):
        return list(lines)
    return [line if line.agrees else replace(line, allowed=line.error, how=EXPLAINED) for line in lines]
