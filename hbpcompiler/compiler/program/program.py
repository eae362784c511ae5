"""What derive hands on, and passes rewrite: the program as an fx graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from hbpcompiler.arguments import Argument
from hbpcompiler.compiler.program import shapes
from hbpcompiler.compiler.trace.graph import Value


@dataclass(frozen=True)
class Program:
    """The whole program, forward and backward.

    The graph's output is (loss, [outputs], {quantity: {parameter: proxy or {field: proxy}}}).
    """

    graph: fx.Graph
    batch: Sequence[Value]
    """Its arguments behind the state, in order."""
    state: Sequence[Value]
    """What it reads of the state."""
    arguments: Sequence[Argument] = ()
    """What a call brings beside the batch, behind it in the signature."""

    def beside(self, samples: int, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What stands for the call arguments, by name and in order, where the program runs without a call."""
        return shapes.stand_ins(self.graph, samples, state)

    def stand_ins(self, samples: int, vectors: int = shapes.BATCHES[0]) -> list[Any]:
        """A meta tensor for all that a call gives, for a batch of so many samples; for the state a dict of them."""
        return shapes.arguments(self.graph, {value.name: value for value in self.batch}, self.state, samples, vectors)
