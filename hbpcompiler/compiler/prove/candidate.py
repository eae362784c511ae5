"""What a proof is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hbpcompiler.arguments import SAMPLE_WEIGHTS
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.prove.own_step import Loss
from hbpcompiler.compiler.prove.weights import SampleWeights, sample_axis
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.conditions.sizes import Sizes
from hbpcompiler.options import Options
from hbpcompiler.values import Stored


@dataclass(frozen=True)
class Candidate:
    """A program, and what it was made from."""

    model: nn.Module
    loss: Loss
    options: Options
    matched: Matched
    fields: Sequence[str]
    """The fields of its result that hold the output's tensors."""
    run: Callable[..., Any]
    """Of a batch, and of arguments of the call in place of `beside`: its result, with the model's state as it is, or
    with `tensors` in its place."""
    state: Mapping[str, Tensor]
    sizes: Sizes
    """The batch sizes that it serves."""
    joint_biases: Mapping[str, str] = field(default_factory=dict)
    """By the key of a weight, that of the bias that is in its Kronecker block."""
    block_diagonal: Callable[[str, Any, Sequence[int]], Tensor] | None = None
    """(parameter, what the quantity "block" keeps of it, entries) -> these entries of the block's diagonal."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """The call's arguments."""
    stored: Mapping[str, Stored] = field(default_factory=dict)
    """How its parameters lie, by key."""
    may_cancel: bool = False
    """Whether a Hessian's diagonal is a difference of squares that may be larger than itself: where two values meet."""
    draws_alike: bool = False
    """Whether its random draws must be the model's: averages over many would pass a trace that is a little out of date.
    """

    @property
    def axes(self) -> list[int | None]:
        """Where each of the model's outputs has its samples; None where these have no axis of their own."""
        return [sample_axis(output.shape) for output in self.matched.graph.outputs]

    def weights(self, batch: Batch) -> SampleWeights | None:
        """Those that the call gives these samples."""
        numbers = self.beside.get(SAMPLE_WEIGHTS)
        if numbers is None:
            return None
        axes = [axis for axis in self.axes if axis is not None]
        assert len(axes) == len(self.axes), "such weights are left out (see `can_weigh`)"
        return SampleWeights(numbers[: batch.samples], tuple(axes), self.matched.ending.kind)

    def few(self, batch: Batch, samples: int) -> Batch:
        """The first samples of a batch, so many if it serves that number, otherwise all."""
        if not self.sizes.include(samples):
            return batch
        return batch.of([tensor[:samples] for tensor in batch.tensors])


def can_weigh(matched: Matched, weights: Tensor | None) -> bool:
    """Whether a proof can be of a run with these weights of samples: the model's outputs show the samples apart, and
    something is left of the first two, by which much is compared."""
    return weights is not None and bool(weights[:2].any()) and all(
        sample_axis(output.shape) is not None for output in matched.graph.outputs)
