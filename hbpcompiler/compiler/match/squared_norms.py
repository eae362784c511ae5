"""Squares of Euclidean norms are sums of squares: smooth at zero, where the norm itself has an edge.

Where a row is zero, the curvature of the square is 2 I, which the norm's rule cannot know: its slope is 0 there. What
only moves a norm about, scales it or cuts off what is below zero may stand between the norm and its square.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from hbpcompiler.compiler.match.multiples import multiple_of_not_negative
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.match.signs import never_negative
from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared import written
from hbpcompiler.rules.shared.written import Written


def with_sums_of_squares(graph: Graph) -> Graph:
    """The graph in which the square of a norm over axes of a sample, or over all of a batch, is a sum of squares."""
    operations: list[Operation] = []
    active, signs = graph.active, never_negative(graph)
    # Of a norm that the model returns the loss's square is of the loss: a GGN knows the model by its outputs.
    makers = {in_loss: {own.name: own for own in graph.operations if own.source.in_loss == in_loss}
              for in_loss in (False, True)}
    for operation in graph.operations:
        squares = _Squares(operation, makers[operation.source.in_loss], active, signs)
        operations += squares.operations if squares.found else [operation]
    return without_dead(replace(graph, operations=operations)) if len(operations) > len(graph.operations) else graph


class _Squares:
    """What an operation that squares a norm is by sums of squares, the last of which makes its result."""

    def __init__(self, operation: Operation, makers: Mapping[str, Operation], active: AbstractSet[str],
                 signs: AbstractSet[str]) -> None:
        self.operation, self.makers, self.active, self.signs = operation, makers, active, signs
        self.operations: list[Operation] = []
        self.made = 0
        self.found = self._write()

    def _write(self) -> bool:
        factors = list(self.operation.tensors.values())
        if len(factors) == 1 and written.is_square(self.operation.target, self.operation.attributes):
            factors *= 2
        elif len(factors) != 2 or self.operation.target != written.PRODUCT:
            return False
        (scale, one), (other_scale, other) = map(self._scaled, factors)
        if not self._leads_to_norm(one) or not self._are_equal(one, other):
            return False
        number = scale * other_scale
        output = self.operation.output
        self._square(one, output if number == 1 else self._value("square", output))
        if number != 1:
            self._add(written.multiple(written.PRODUCT, number), output, self.operations[-1].output)
        return True

    def _scaled(self, value: Value) -> tuple[float, Value]:
        """(number, value): of what is a multiple of another value, or that value itself where it is not negative."""
        number = 1.0
        while (maker := self.makers.get(value.name)) is not None and len(maker.tensors) == 1:
            (inner,) = maker.tensors.values()
            factor = written.factor_of(maker.target, maker.attributes)
            if factor is None and inner.name in self.signs:
                factor = multiple_of_not_negative(maker)
            if factor is None or inner.dtype != value.dtype:
                break
            number, value = number * factor, inner
        return number, value

    def _are_equal(self, one: Value, other: Value) -> bool:
        """Whether two values are one, which may be written twice."""
        if one.shape != other.shape:
            return False
        one, other = self._before_reshapes(one), self._before_reshapes(other)
        if one.name == other.name:
            return True
        makers = self.makers.get(one.name), self.makers.get(other.name)
        if makers[0] is None or makers[1] is None or not self._is_known(makers[0]):
            return False
        calls = [(own.target, own.overload, own.attributes, list(own.tensors)) for own in makers if own is not None]
        pairs = zip(makers[0].tensors.values(), makers[1].tensors.values(), strict=False)
        return calls[0] == calls[1] and all(self._are_equal(*pair) for pair in pairs)

    def _before_reshapes(self, value: Value) -> Value:
        """The value whose numbers, in their order, are this one's."""
        while (maker := self.makers.get(value.name)) is not None and len(maker.tensors) == 1 and (
                maker.target in written.RESHAPED or (maker.target == written.PART and self._keeps_all(maker))):
            (value,) = maker.tensors.values()
        return value

    def _keeps_all(self, part: Operation) -> bool:
        (value,) = part.tensors.values()
        return value.shape == part.output.shape

    def _is_known(self, operation: Operation) -> bool:
        return self._is_norm(operation) or operation.target in written.MOVED

    def _leads_to_norm(self, value: Value) -> bool:
        _, value = self._scaled(value)
        maker = self.makers.get(value.name)
        if maker is None or not self._is_known(maker):
            return False
        return self._is_norm(maker) or any(map(self._leads_to_norm, maker.tensors.values()))

    def _is_norm(self, operation: Operation) -> bool:
        """Whether it is a Euclidean norm that keeps samples to themselves, or takes all numbers of the batch."""
        value = operation.tensors.get("self")
        if value is None or operation.name not in self.active or not value.of_batch:
            return False
        axes = written.axes_of_root_of_squares(operation.target, operation.attributes, len(value.shape), value.dtype)
        return axes is not None and (len(axes) == len(value.shape) or 0 not in axes)

    def _square(self, value: Value, output: Value) -> None:
        """Write the square of a value; `output` is its result."""
        number, inner = self._scaled(value)
        maker = self.makers.get(inner.name)
        if maker is None or not self._leads_to_norm(inner):
            self._add(written.squared(), output, value)
        elif number != 1:
            self._square(inner, self._value("unscaled", inner))
            self._add(written.multiple(written.PRODUCT, number * number), output, self.operations[-1].output)
        elif self._is_norm(maker):
            self._sum_of_squares(maker, output)
        else:
            tensors = {}
            for slot, part in maker.tensors.items():
                self._square(part, self._value("part", part))
                tensors[slot] = self.operations[-1].output
            self.operations.append(replace(maker, output=output, tensors=tensors, source=self.operation.source))

    def _sum_of_squares(self, norm: Operation, output: Value) -> None:
        value, attributes = norm.tensors["self"], norm.attributes
        axes = written.axes_of_root_of_squares(norm.target, attributes, len(value.shape), value.dtype)
        all_axes = axes is None or (len(axes) == len(value.shape) and not output.shape)
        added = written.reduced(written.SUM, None if all_axes else axes, bool(attributes.get("keepdim")))
        self._add(written.squared(), self._value("each", value, output), value)
        self._add(added, output, self.operations[-1].output)

    def _value(self, name: str, like: Value, dtype_of: Value | None = None) -> Value:
        number = f"_{self.made}" if self.made else ""
        self.made += 1
        return Value(f"{self.operation.name}_{name}{number}", like.shape, (dtype_of or like).dtype, "result")

    def _add(self, call: Written, output: Value, value: Value) -> None:
        self.operations.append(write(call, {"self": value}, output, self.operation.source))
