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
    batches = enumerate(data)
    first = _Outputs.of(passes, *next(batches), axes)
    mean = _is_mean(passes, first)
    if mean and counts is not None:
        weights = list(counts)
    else:
        weights = [1.0, *(_weight(passes, first, _Outputs.of(passes, number, batch, axes), mean)
                          for number, batch in batches)]
    total = sum(weights) if mean else 1.0
    return Scales(mean, tuple(weight / total for weight in weights))


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
        with passes.careful(), passes.drawn(number, batch):
            tensors, structure = passes.outputs(batch, passes.variables())
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


def _is_mean(passes: Passes, one: _Outputs) -> bool:
    """Of a batch laid twice, the loss is the same if it is a mean, and twice as large if it is a sum."""
    parts = _parts(passes, one, one)
    for mean, expected in ((True, 0.5), (False, 1.0)):
        if parts is None or all(abs(part - expected) <= _near(one) for part in parts):
            return mean
    assert parts is not None
    raise UnsupportedOpError("the loss is neither a mean nor a sum over samples: if a batch is laid twice, its slopes "
                             f"are multiplied by {parts[0]:.4g}; those of a mean are by 0.5, of a sum by 1")


def _weight(passes: Passes, first: _Outputs, other: _Outputs, mean: bool) -> float:
    """What `other` weighs in the loss of all if the first batch weighs 1."""
    parts = _parts(passes, first, other)
    if parts is None:
        return other.batch.samples / first.batch.samples if mean else 1.0
    total, expected = sum(parts), 1.0 if mean else 2.0
    if abs(total - expected) > _near(first):
        raise UnsupportedOpError(f"the loss of batches 0 and {other.number} laid together is no "
                                 f"{'weighted mean' if mean else 'sum'} of their losses")
    return parts[1] / parts[0] if mean else 1.0


def _parts(passes: Passes, one: _Outputs, other: _Outputs) -> tuple[float, float] | None:
    """By what the slopes of each are multiplied when the two are laid together; None where there are none."""
    for noise in (0.0, NOISE):
        moved, others = one.moved(noise), other.moved(noise)
        alone = [one.slopes(passes, moved), other.slopes(passes, others)]
        together = other.fronts(_slopes(passes, *_together(one, moved, other, others)))
        rows = [slope[: one.batch.samples] for slope in together], [slope[one.batch.samples :] for slope in together]
        parts = [_ratio(part, own, each) for part, own, each in zip(rows, alone, (one, other), strict=True)]
        if parts[0] is not None and parts[1] is not None:
            return parts[0], parts[1]
    return None


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
        raise InputError(f"batches 0 and {other.number} cannot be laid together, so that their weights in a mean are "
                         f"unknown: inputs, targets and outputs are {shapes[0]} and {shapes[1]}; {ADVICE}")
    joined = [torch.cat(pair) for pair in targets]
    _, _, target = other.batch.layout.build([*other.batch.inputs, *joined])
    return outputs, other.structure, target


def _near(outputs: _Outputs) -> float:
    """How near to each other equal ratios are."""
    return 3 * max(torch.finfo(outputs.tensors[i].dtype).eps for i in outputs.varying) ** 0.5
