"""What a proof is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.prove.own_step import Loss
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.sizes import Sizes
from hbpcompiler.options import Options


@dataclass(frozen=True)
class Candidate:
    """A program, and what it was made from."""

    model: nn.Module
    loss: Loss
    options: Options
    matched: Matched
    fields: Sequence[str]
    """The fields of its result that hold the output's tensors."""
    run: Callable[[Batch], Any]
    """Its result, with the model's state as it is."""
    state: Mapping[str, Tensor]
    sizes: Sizes
    """The batch sizes that it serves."""
    joint_biases: Mapping[str, str] = field(default_factory=dict)
    """By the key of a weight, that of the bias that is in its Kronecker block."""
    block_diagonal: Callable[[str, Any, Sequence[int]], Tensor] | None = None
    """(parameter, what the quantity "block" keeps of it, entries) -> these entries of the block's diagonal."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """The call's arguments."""

    def few(self, batch: Batch, samples: int) -> Batch:
        """The first samples of a batch, so many if it serves that number, otherwise all."""
        if not self.sizes.include(samples):
            return batch
        return Batch(tuple(tensor[:samples] for tensor in batch.tensors), batch.layout)
