"""What match hands on: the graph, a rule for each operation that needs one, and the facts that all later stages ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.match.operation.stand_ins import StandIns, meta_number
from hbpcompiler.compiler.match.signs import never_negative
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import Op, Zero
from hbpcompiler.rule.registry import AnyRule


@dataclass(frozen=True)
class Ending:
    """How the loss ends: in sums and means over the batch, and in a sum of multiples of those (see `endings`)."""

    reductions: tuple[Operation, ...]
    """The operations that reduce the batch to numbers."""
    tail: tuple[Operation, ...]
    """Those that make the loss of these numbers, in order."""
    kind: str
    """"mean" or "sum": which of the two the whole loss is."""
    definite: bool
    """Whether each part of the loss is one of the two; if not, the scale of l_n is a matter of taste."""
    multiples: Mapping[str, Any]
    """By the name of each reduction, what its l_n is multiplied by in the loss's: a number, or an expression in N and
    unknown numbers."""
    mixed: bool = False
    """Whether some parts are means and others are sums, so that no weight of a batch serves all of them."""


@dataclass(frozen=True)
class Matched:
    """A graph in the form that derivatives are written for. Nothing in it changes any more."""

    graph: Graph
    rules: Mapping[str, AnyRule]
    """By the operation's name."""
    active: frozenset[str]
    """Names of the values that derivatives reach: between a trainable parameter and the loss."""
    ending: Ending
    names: Mapping[str, str]
    """How generated code calls each value."""

    @cached_property
    def mixed(self) -> bool:
        """Whether the values that derivatives reach have several dtypes."""
        return len({value.dtype for value in self.graph.values() if value.name in self.active}) > 1

    @cached_property
    def has_flat_loss(self) -> bool:
        """Whether the loss is linear in the model's output, or in pieces, so that its GGN is zero."""
        inside = [operation for operation in self.graph.operations
                  if operation.source.in_loss and operation.name in self.active]
        return all(isinstance(self.rules[operation.name].residual_of(self.static(operation)), Zero)
                   for operation in inside)

    @cached_property
    def never_negative(self) -> frozenset[str]:
        """Names of values that are known to be so (see `signs`)."""
        return never_negative(self.graph)

    @cached_property
    def parameters_above(self) -> Mapping[str, frozenset[str]]:
        """For each value, the keys of the trainable parameters that it depends on, itself not counted."""
        return self.graph.parameters_above

    def static(self, operation: Operation) -> Op:
        """The Op with meta tensors: shapes of what rules return, and no arithmetic.

        Also of an operation on pieces of the tensors, which has the name of the one on the whole (see `local`).
        """
        known, op = self._static_ops.get(id(operation), (None, None))
        if known is not operation or op is None:
            stand_ins = StandIns(operation, self.rules.get(operation.name))
            op = bind(operation, stand_ins, self.active, number=meta_number(operation))
            self._static_ops[id(operation)] = operation, op
        return op

    @cached_property
    def _static_ops(self) -> dict[int, tuple[Operation, Op]]:
        """By the operation's id; the operation beside it, so that no other takes its id."""
        return {}

    @property
    def end(self) -> Value | None:
        """The value at which the stream OUTPUT begins, if it does anywhere."""
        return self.graph.makers[self.graph.end].output if self.graph.end else None

    @property
    def trainable(self) -> list[Value]:
        """The parameters that quantities are about, in the order of the model's state: those that reach the loss, or
        the output whose derivatives alone are wanted."""
        return [value for value in self.graph.state if value.trainable and value.name in self.active]

    @cached_property
    def unused(self) -> list[str]:
        """Names of the trainable parameters that no derivative reaches."""
        return [value.key for value in self.graph.state if value.trainable and value.name not in self.active]
