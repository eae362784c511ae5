"""How the batches of a loader make one: which share each has in the loss of all of them laid together.

It is measured, not read off the loss's name: in the loss of two batches laid together, each one's slopes are multiplied
by a number. For a sum this is 1; for a mean it is the batch's part of what is divided by: samples, tokens, weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.double import AtOutputs
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import shown
from hbpcompiler.compiler.trace.containers import Structure
from hbpcompiler.errors import InputError, UnsupportedOpError
from hbpcompiler.operators.data import Data
from hbpcompiler.operators.passes import Passes
from hbpcompiler.operators.sample_axes import SampleAxes, SampleAxis, known

NOISE = 0.1
"""Added to outputs in which the loss has no slope."""
ADVICE = ("say how many terms of the mean each batch holds: hbp.operator(..., count=lambda batch: ...), with the batch "
          "as the loader gives it")


@dataclass(frozen=True)
class Scales:
    """Whether L is a mean, and each batch's share rho in it: L = sum_b rho_b L_b."""

    mean: bool
    shares: tuple[float, ...]


def scales_of(passes: Passes, data: Data, axes: SampleAxes, counts: Sequence[float] | None) -> Scales:
    """Raises InputError for batches that cannot be laid together, UnsupportedOpError for what is no sum or mean."""
    chosen, mean = _compared_with(passes, data, axes)
    if mean and counts is not None:
        weights = list(counts)
    else:
        weights = []
        for number, batch in enumerate(data):
            with passes.named(number, batch):
                other = _Outputs.of(passes, number, batch, axes)
                weights.append(1.0 if number == chosen.number else _weight(passes, chosen, other, mean))
    total = sum(weights) if mean else 1.0
    return Scales(mean, tuple(weight / total for weight in weights))


def _compared_with(passes: Passes, data: Data, axes: SampleAxes) -> tuple[_Outputs, bool]:
    """A batch in which the loss has slopes (not one whose targets are all ignored), if there is any, and whether the
    loss is a mean."""
    first: _Outputs | None = None
    for number, batch in enumerate(data):
        outputs = _Outputs.of(passes, number, batch, axes)
        mean = _is_mean(passes, outputs)
        if mean is not None:
            return outputs, mean
        first = first or outputs
    assert first is not None
    return first, True


@dataclass(frozen=True)
class _Outputs:
    """What the model returned for a batch."""

    number: int
    batch: Batch
    tensors: list[Tensor]
    varying: list[int]
    axes: list[SampleAxis | None]
    structure: Structure

    @classmethod
    def of(cls, passes: Passes, number: int, batch: Batch, axes: SampleAxes) -> _Outputs:
        found = axes.of(batch)
        with passes.careful(), passes.variables(), passes.drawn(number, batch):
            tensors, structure = passes.outputs(batch)
        varying = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
        known(found, varying)
        return cls(number, batch, [tensor.detach() for tensor in tensors], varying, found, structure)

    def moved(self, size: float) -> list[Tensor]:
        """The tensors, those that vary as leaves, with noise of this size on them."""
        generator = torch.Generator().manual_seed(self.number)
        tensors = list(self.tensors)
        for i in self.varying:
            noise = size * torch.randn(tensors[i].shape, generator=generator, device="cpu")
            tensors[i] = (tensors[i] + noise.to(tensors[i])).requires_grad_()
        return tensors

    def slopes(self, passes: Passes, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[N, *z] each, samples in front."""
        _, _, target = self.batch.layout.build(self.batch.tensors)
        return self.fronts(_slopes(passes, tensors, self.structure, target))

    def fronts(self, slopes: Sequence[Tensor]) -> list[Tensor]:
        axes = known(self.axes, self.varying)
        return [axis.front(slope) for axis, slope in zip(axes, slopes, strict=True)]


def _slopes(passes: Passes, tensors: Sequence[Tensor], structure: Structure, target: object) -> list[Tensor]:
    with passes.careful():
        return [slope.detach() for slope in AtOutputs(tensors, structure, target, passes.loss).slopes]


def _is_mean(passes: Passes, one: _Outputs) -> bool | None:
    """Of a batch laid twice, the loss is the same if it is a mean, and twice as large if it is a sum; None where it has
    no slopes."""
    parts = _parts(passes, one, one)
    if parts is None:
        return None
    for mean, expected in ((True, 0.5), (False, 1.0)):
        if all(part is not None and abs(part - expected) <= _near(one) for part in parts):
            return mean
    raise UnsupportedOpError("the loss is neither a mean nor a sum over samples: if a batch is laid twice, its slopes "
                             f"are multiplied by {parts[0]:.4g}; those of a mean are by 0.5, of a sum by 1")


def _weight(passes: Passes, chosen: _Outputs, other: _Outputs, mean: bool) -> float:
    """What `other` weighs in the loss of all if the chosen batch weighs 1."""
    parts = _parts(passes, chosen, other)
    if parts is None:
        return other.batch.samples / chosen.batch.samples if mean else 1.0
    own, rest = parts
    if rest is None:  # it has no slopes; what a mean divides by may count it or not
        rest = _rounded(1.0 - own, chosen) if mean else 1.0
    total, expected = own + rest, 1.0 if mean else 2.0
    if abs(total - expected) > _near(chosen):
        raise UnsupportedOpError(f"the loss of batches {chosen.number} and {other.number} laid together is no "
                                 f"{'weighted mean' if mean else 'sum'} of their losses")
    return rest / own if mean else 1.0


def _rounded(part: float, outputs: _Outputs) -> float:
    """What differs from zero by rounding alone is zero."""
    return part if abs(part) > _near(outputs) else 0.0


def _parts(passes: Passes, one: _Outputs, other: _Outputs) -> tuple[float, float | None] | None:
    """By what the slopes of each are multiplied when the two are laid together: None for `other` if it has none, and
    for both where `one` has none."""
    found: tuple[float, float | None] | None = None
    for noise in (0.0, NOISE):
        moved, others = one.moved(noise), other.moved(noise)
        alone = [one.slopes(passes, moved), other.slopes(passes, others)]
        together = other.fronts(_slopes(passes, *_together(one, moved, other, others)))
        rows = [slope[: one.batch.samples] for slope in together], [slope[one.batch.samples :] for slope in together]
        own, rest = [_ratio(part, own, each) for part, own, each in zip(rows, alone, (one, other), strict=True)]
        if own is not None:
            found = own, rest
            if rest is not None:
                break
    return found


def _ratio(part: Sequence[Tensor], alone: Sequence[Tensor], of: _Outputs) -> float | None:
    """r with part = r alone; None if all is zero."""
    squares = float(sum(own.double().square().sum() for own in alone))
    if not squares < float("inf"):
        raise InputError(f"the loss of batch {of.number} has slopes that are not finite; are all its targets ignored?")
    if not squares:
        return None
    ratio = float(sum((one.double() * own).sum() for one, own in zip(part, alone, strict=True))) / squares
    rest = float(sum((one.double() - ratio * own).square().sum() for one, own in zip(part, alone, strict=True)))
    if not rest**0.5 <= _near(of) * squares**0.5:
        raise UnsupportedOpError("the loss is no mean or sum of what each sample has by itself: other samples beside "
                                 f"them change the slopes of batch {of.number}")
    return ratio


def _together(one: _Outputs, moved: Sequence[Tensor], other: _Outputs, others: Sequence[Tensor],
              ) -> tuple[list[Tensor], Structure, object]:
    """Outputs and targets of two batches as one."""
    fits = one.batch.layout.identity == other.batch.layout.identity and len(moved) == len(others)
    outputs = []
    for axis, left, right in zip(other.axes, moved, others, strict=False):
        pair = [left, right] if axis is None else [axis.front(left), axis.front(right)]
        fits = fits and pair[0].shape[1:] == pair[1].shape[1:]
        outputs.append(axis.back(torch.cat(pair)) if axis is not None and fits else right)
    targets = list(zip(one.batch.targets, other.batch.targets, strict=False))
    if not fits or any(left.shape[1:] != right.shape[1:] for left, right in targets):
        shapes = [", ".join(map(shown, (*each.batch.tensors, *each.tensors))) for each in (one, other)]
        raise InputError(f"batches {one.number} and {other.number} cannot be laid together, so that their weights in a "
                         f"mean are unknown: inputs, targets and outputs are {shapes[0]} and {shapes[1]}; {ADVICE}")
    joined = [torch.cat(pair) for pair in targets]
    _, _, target = other.batch.layout.build([*other.batch.inputs, *joined])
    return outputs, other.structure, target


def _near(outputs: _Outputs) -> float:
    """How near to each other equal ratios are."""
    return 3 * max(torch.finfo(outputs.tensors[i].dtype).eps for i in outputs.varying) ** 0.5
