"""Central differences of the model's own gradient, where torch's second derivative and the program disagree; and of
its loss, where the gradients disagree in their last digits.

Some of torch's backward kernels have a wrong derivative of their own, while the program's rules never meet it (those
that are known are not used, see `rules/shared/twice.py`). First derivatives are the common ground. So at the entries in
question the gradient itself is differentiated, in double precision, with two steps of which one is half the other
(Richardson's extrapolation): what their difference leaves open is too much to decide between the two, or the program is
right, or it is not. A gradient that is off by 1e-8 (torch's weight_norm on CUDA) is told by three steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Comparison, Numbers, compared
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.in_double import Doubled
from hbpcompiler.compiler.prove.own_step import own_step
from hbpcompiler.compiler.prove.twin import GRAD
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.rules.shared.twice import right_derivatives

STEP = 1e-4
"""Of the parameter's entry, or of one where that is larger."""
CLEAR = 10.0
"""How many times nearer to the differences than to torch's second derivative a value must be."""
SMALLEST = 1e-6
"""Of the largest number: what rounding does to differences."""
SHOWN = "central differences of the gradient agree; torch's own second derivative does not"
SMALLEST_FIRST = 1e-11
SHOWN_FIRST = "central differences of the loss agree; torch's own derivative does not"
STEP_FIRST = 4e-3
LITTLE = 1e-5
"""Of the largest number: a gap in double precision that a kernel of torch's may be to blame for."""
EXACTLY = "by autograd, without a function of torch's that is known to be less exact"


@dataclass(frozen=True)
class Shifted(Doubled):
    """Every number in double precision, one entry of one parameter moved."""

    parameter: Tensor
    entry: int
    by: float

    def moved(self, tensor: Tensor) -> Tensor:
        wide = super().moved(tensor)
        if tensor.data_ptr() != self.parameter.data_ptr() or tensor.shape != self.parameter.shape:
            return wide
        step = torch.zeros_like(wide).flatten()
        step[self.entry] = self.by
        return wide.detach() + step.view(wide.shape)


def hessian_entries(candidate: Candidate, batch: Batch, draws: Draws, name: str, entries: Sequence[int],
                    ) -> tuple[Tensor, float]:
    """Entries of the diagonal of the Hessian of L in one parameter, and how far they are from sure."""
    coarse, fine = (torch.stack([_slope(candidate, batch, draws, name, entry, step) for entry in entries])
                    for step in (STEP, STEP / 2))
    return (4 * fine - coarse) / 3, float((fine - coarse).abs().max())


def gradient_entry(candidate: Candidate, batch: Batch, draws: Draws, name: str, entry: int) -> tuple[Tensor, float]:
    """One entry of the gradient of L in one parameter, and how far it is from sure."""
    parameter = candidate.model.get_parameter(name)
    size = max(1.0, abs(float(parameter.detach().flatten()[entry])))

    def rise(step: float) -> Tensor:
        ahead, behind = (_loss(candidate, batch, draws, Shifted(parameter, entry, by)) for by in (step, -step))
        return (ahead - behind) / (2 * step)

    coarse, middle, fine = (rise(STEP_FIRST * size / times) for times in (1, 2, 4))
    first, second = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
    best = (16 * second - first) / 15
    return best, float((best - second).abs())


def is_little(line: Comparison) -> bool:
    """Whether a kernel of torch's may be to blame for what a gradient is off by."""
    return not line.agrees and line.quantity == GRAD and line.error <= LITTLE * line.largest


def exactly(lines: Sequence[Comparison], found: Numbers, right: Callable[[], Numbers], eps: float) -> list[Comparison]:
    """The lines; those that disagree by a last few digits beside the model's own gradient with no function of torch of
    which the derivative is known to be less exact: `right` gives it. It bends where CELU does, differences or not."""
    if not any(map(is_little, lines)):
        return list(lines)
    with right_derivatives():
        exact = {line.key: line for line in compared(found, right(), eps) if line.agrees}
    return [replace(exact[line.key], how=f"{line.how}, {EXACTLY}".removeprefix(", "))
            if is_little(line) and line.key in exact else line for line in lines]


def decided(line: Comparison, found: Tensor, right: Tensor, by_differences: Tensor, doubt: float,
            smallest: float = SMALLEST, shown: str = SHOWN) -> Comparison:
    """The line, as agreeing if differences say that the program's value is right and torch's own is not."""
    near = float((found - by_differences).abs().max())
    far = float((right - by_differences).abs().max())
    known = max(2 * doubt, smallest * float(by_differences.abs().max()))
    if near <= known and far > CLEAR * known:
        return Comparison(line.quantity, line.parameter, near, float(by_differences.abs().max()), known, shown)
    return line


def _slope(candidate: Candidate, batch: Batch, draws: Draws, name: str, entry: int, step: float) -> Tensor:
    """The derivative of one entry of the gradient in the same entry of the parameter."""
    parameter = candidate.model.get_parameter(name)
    step *= max(1.0, abs(float(parameter.detach().flatten()[entry])))
    ahead, behind = (_gradient(candidate, batch, draws, name, Shifted(parameter, entry, by))[entry]
                     for by in (step, -step))
    return (ahead - behind) / (2 * step)


def _loss(candidate: Candidate, batch: Batch, draws: Draws, moves: Shifted) -> Tensor:
    step = own_step(candidate.model, candidate.loss, batch, draws, moves, backward=False)
    assert step.loss is not None, "it is not known of weighted samples alone"
    return step.loss


def _gradient(candidate: Candidate, batch: Batch, draws: Draws, name: str, moves: Shifted) -> Tensor:
    weights = candidate.weights(batch)
    if weights is None:
        step = own_step(candidate.model, candidate.loss, batch, draws, moves)
    else:
        step = own_step(candidate.model, candidate.loss, batch, draws, moves, of=weights.number)
    return step.gradients[name].flatten()
