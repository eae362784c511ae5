"""The sample axis brought to the front where a model has it elsewhere: behind the positions, or merged with them.

What a model does to a batch it does to a batch of one. So an operation on a value such as [T, N, d] is carried out
sample by sample: torch.vmap over batches of one writes it in operations on [N, T, 1, d], every value with its sample
axis in front. Where that has no form, and [p*N, *z] are parts that the operation takes one by one (a convolution of
frames), it is the same operation on [N, p, *z] (`rule.positions`). Whether it keeps samples apart is checked with
random numbers. Where any of this fails the graph stays as it is, and what moves the sample axis is refused by its rule.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import sympy

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.vmapped import NotSampleWiseError
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.match.samples.merged_positions import positions, taken_apart
from hbpcompiler.compiler.match.samples.sample_wise import (
    depends,
    misplaced,
    number_for,
    of_one,
    order_of_result,
    parts_stay_apart,
    sample_by_sample,
    signature,
)
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.rule import LossRule, Rule
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.shared import written


def samples_first(graph: Graph, registry: Registry) -> tuple[Graph, list[str]]:
    """The graph with the sample axis in front of every value that derivatives reach; or as it is, and why."""
    active = graph.active
    found = {operation.name for operation in graph.operations
             if operation.name in active and misplaced(operation.output)}
    if not found:
        return graph, []
    rewriting = _Rewriting(graph, registry, active)
    try:
        return rewriting.run(), []
    except NotSampleWiseError:
        operation = rewriting.current
        where, shape = f"{operation.target} in {operation.source}", list(operation.output.shape)
        lengths = [length for length in operation.output.shape if depends(length)]
        if not all(map(_of_whole_batch, lengths)):
            return graph, [f"{where}: it takes some of the samples (its result has shape {shape}), which mixes them or "
                           "leaves some out; keep all samples, in their order"]
        module = operation.source.module_type.rpartition(".")[2]
        missing = f"; if {module} has an argument batch_first, it may be missing" if module else ""
        if len(lengths) > 1:
            return graph, [f"{where}: each sample meets all others there (its result has shape {shape}), so that none "
                           "has a share of the loss that is its own, which the quantities here are made of; the "
                           "gradient of such a loss is loss.backward(), and hbp.operator(..., \"hessian\") multiplies "
                           f"with its Hessian{missing if len(shape) > len(lengths) else ''}"]
        return graph, [f"{where}: its samples are not in front (its result has shape {shape}), and it mixes them or "
                       "has no form that keeps them apart; keep the samples in front, as in x.reshape(x.shape[0], -1, "
                       f"x.shape[-1]){missing}"]


def _keeps_axes(operation: Operation, values: Sequence[Value]) -> bool:
    """Another shape of the same numbers keeps samples apart if it has the same axes up to theirs."""
    ends = [max(axis for axis, length in enumerate(value.shape) if depends(length)) + 1 for value in values]
    shapes = {value.shape[:end] for value, end in zip(values, ends, strict=True)}
    return operation.target not in written.RESHAPED or len(shapes) == 1


def _of_whole_batch(length: Any) -> bool:
    """Whether an axis holds all samples, p N: x[1:] has N - 1."""
    ratio = sympy.sympify(length) / N
    return bool(ratio.is_Integer and ratio >= 1)


class _Rewriting:
    def __init__(self, graph: Graph, registry: Registry, active: AbstractSet[str]) -> None:
        self.graph, self.registry, self.active = graph, registry, active
        self.operations: list[Operation] = []
        self.batches_of_one: dict[str, Value] = {}
        self.minor: set[str] = set()
        """Values [p*N, *z] that count the samples within each position; the others are [N*p, *z] in truth."""
        self.orders: dict[Hashable, bool | None] = {}
        self.by_parts: dict[Hashable, bool] = {}
        """What the checks said of an operation (see `signature`)."""
        self.in_pieces: dict[Hashable, _InPieces] = {}
        self.current = graph.operations[0]

    def run(self) -> Graph:
        returned = {output.name for output in self.graph.outputs}
        read = {value.name for operation in self.graph.operations if not self._is_converted(operation)
                for value in operation.tensors.values()}
        for operation in self.graph.operations:
            self.current = operation
            if not self._is_converted(operation):
                self.operations.append(operation)
                continue
            if not any(map(depends, operation.output.shape)):
                self.operations += self._reduced(operation)
                continue
            self._convert(operation)
            if not misplaced(operation.output):
                one = self.batches_of_one[operation.name]
                self.operations.append(write(written.without_axis(1), {"self": one}, operation.output,
                                             operation.source))
            elif operation.name in read:
                self.operations += _laid_out(self._as_it_was(operation))
            elif operation.name in returned:
                self.operations.append(self._as_it_was(operation))
        return replace(self.graph, operations=self.operations)

    def _is_converted(self, operation: Operation) -> bool:
        return operation.name in self.active and any(map(misplaced, (*operation.tensors.values(), operation.output)))

    def _as_it_was(self, operation: Operation) -> Operation:
        """What the model returns, or what no derivatives pass on from, in the shape that the user's code gave it."""
        output, one = operation.output, self.batches_of_one[operation.name]
        (axis,) = [axis for axis, length in enumerate(output.shape) if depends(length)]
        if output.shape[axis] == N:
            # For a batch of one the axis has length one: the samples take its place.
            squeezed = replace(one, name=f"{output.name}_squeezed",
                               shape=(*one.shape[: axis + 1], *one.shape[axis + 2 :]))
            self.operations.append(write(written.without_axis(axis + 1), {"self": one}, squeezed, operation.source))
            dims = [*range(1, axis + 1), 0, *range(axis + 1, len(output.shape))]
            return write(written.permuted(dims), {"self": squeezed}, output, operation.source)
        if axis or operation.name in self.minor:
            raise NotSampleWiseError
        return write(written.merged(0, 1), {"self": one}, output, operation.source)

    def _reduced(self, operation: Operation) -> list[Operation]:
        """What sums over the samples: a loss, if it may be that of the positions taken apart."""
        rule = self.registry.find(operation.target, operation.overload)
        given = [value for value in operation.tensors.values() if any(map(depends, value.shape))]
        merged = all(positions(value) > 1 for value in given)
        if not isinstance(rule, LossRule) or not (merged or rule.positions == 1):
            raise NotSampleWiseError
        ones = {value.name: self._one(value, operation) for value in given}
        if len({value.name in self.minor for value in given}) > 1:
            raise NotSampleWiseError
        found = taken_apart(operation, ones, self.registry)
        if found is None:
            raise NotSampleWiseError
        return found

    def _one(self, value: Value, user: Operation) -> Value:
        """[N, *batch of one]; values without samples are what they are."""
        if not any(map(depends, value.shape)):
            return value
        if value.name not in self.batches_of_one:
            if misplaced(value):
                if value.name not in self.graph.makers:
                    raise NotSampleWiseError
                maker = self.graph.makers[value.name]
                if aten.draws(maker) and maker.name not in self.active:
                    self.batches_of_one[value.name] = self._drawn(value, user)
                else:
                    self._convert(maker)
            else:
                output = Value(f"{value.name}_one", (N, 1, *value.shape[1:]), value.dtype, "result")
                self.operations.append(write(written.with_axis(1), {"self": value}, output, user.source))
                self.batches_of_one[value.name] = self._counted_from_zero(output, user) if value.numbering else output
        return self.batches_of_one[value.name]

    def _drawn(self, value: Value, user: Operation) -> Value:
        """What the model draws for all samples at once, [K, N, *z] or [N*K, *z]: the same numbers, samples in front."""
        axis = next(axis for axis, length in enumerate(value.shape) if depends(length))
        if value.shape[axis] != N:
            if axis:
                raise NotSampleWiseError
            output = Value(f"{value.name}_one", (N, *of_one(value)), value.dtype, "result")
            self.operations.append(write(written.in_shape(output.shape), {"self": value}, output, user.source))
            return output
        dims = [axis, *(other for other in range(len(value.shape)) if other != axis)]
        permuted = Value(f"{value.name}_permuted", tuple(value.shape[dim] for dim in dims), value.dtype, "result")
        self.operations.append(write(written.permuted(dims), {"self": value}, permuted, user.source))
        output = Value(f"{value.name}_one", (N, *of_one(value)), value.dtype, "result")
        self.operations.append(write(written.with_axis(axis + 1), {"self": permuted}, output, user.source))
        return output

    def _counted_from_zero(self, numbers: Value, user: Operation) -> Value:
        """The only sample of a batch of one has the number 0."""
        output = replace(numbers, name=f"{numbers.name}_first")
        self.operations.append(write(written.zeros(), {"self": numbers}, output, user.source))
        return output

    def _convert(self, operation: Operation) -> None:
        lengths = [length for value in (*operation.tensors.values(), operation.output) for length in value.shape
                   if depends(length)]
        if sum(map(depends, operation.output.shape)) > 1 or not all(map(_of_whole_batch, lengths)):
            raise NotSampleWiseError
        tensors = {slot: self._one(value, operation) for slot, value in operation.tensors.items()}
        rule = self.registry.find(operation.target, operation.overload)
        sampled = [value for value in operation.tensors.values() if any(map(depends, value.shape))]
        output = Value(f"{operation.name}_one", (N, *of_one(operation.output)), operation.output.dtype, "result")
        values = [*sampled, operation.output]
        alike = len({len(value.shape) for value in values}) == 1 and _keeps_axes(operation, values)
        if isinstance(rule, Rule) and rule.merged and alike and self._orders_agree(sampled, operation.output):
            # It counts no axis from the front, so it need not be taken apart.
            self.operations.append(replace(operation, output=output, tensors=tensors))
        else:
            known = signature(operation, self.minor)
            if known not in self.orders:
                self.orders[known] = order_of_result(operation, self.minor)
            order = self.orders[known]
            if order is None:
                raise NotSampleWiseError
            if order:
                self.minor.add(operation.name)
            output = self._written(operation, tensors, output)
        self.batches_of_one[operation.name] = output

    def _written(self, operation: Operation, tensors: dict[str, Value], output: Value) -> Value:
        """The operation's value, by the first way that there is: once for all samples; by torch.vmap; by parts; by
        torch.vmap of what the operation is taken apart into."""
        if not any(depends(length) for value in operation.tensors.values() for length in value.shape):
            return self._repeated(operation, output)
        known = signature(operation, self.minor)
        if known in self.in_pieces:
            pieces, made = self.in_pieces[known].again(operation, tensors)
            self.operations += pieces
            return made
        try:
            pieces, made = sample_by_sample(operation, tensors, self.registry)
            self.in_pieces[known] = _InPieces(operation, tensors, pieces, made)
        except NotSampleWiseError:
            apart = aten.decomposition(aten.overload_of(operation), self.registry)
            if self._takes_parts(operation):
                pieces, made = [replace(operation, output=output, tensors=tensors, parts=True)], output
            elif apart is not None:
                pieces, made = sample_by_sample(operation, tensors, self.registry, apart)
            else:
                raise
        self.operations += pieces
        return made

    def _takes_parts(self, operation: Operation) -> bool:
        known = signature(operation, self.minor)
        if known not in self.by_parts:
            self.by_parts[known] = parts_stay_apart(operation)
        return self.by_parts[known]

    def _repeated(self, operation: Operation, output: Value) -> Value:
        """What has no samples, repeated for each."""
        once = Value(f"{operation.name}_once", output.shape[1:], output.dtype, "result")
        attributes = {name: [number_for(1, part) for part in item] if isinstance(item, list) else number_for(1, item)
                      for name, item in operation.attributes.items()}
        self.operations.append(replace(operation, output=once, attributes=attributes))
        self.operations.append(write(written.expanded(output.shape), {"self": once}, output, operation.source))
        return output

    def _orders_agree(self, sampled: list[Value], output: Value) -> bool:
        """Whether all merged values have one order, which the result then has too."""
        orders = {value.name in self.minor for value in sampled if positions(value) != 1}
        if orders != {True}:
            return len(orders) <= 1
        if {positions(value) for value in sampled} != {positions(output)}:
            return False
        self.minor.add(output.name)
        return True


@dataclass(frozen=True)
class _InPieces:
    """How torch.vmap wrote an operation, for others that differ in their names only."""

    operation: Operation
    tensors: Mapping[str, Value]
    pieces: Sequence[Operation]
    made: Value

    def again(self, operation: Operation, tensors: Mapping[str, Value]) -> tuple[list[Operation], Value]:
        """The pieces of this operation, and the value they make."""
        own = {value.name: tensors[slot] for slot, value in self.tensors.items()}

        def renamed(value: Value) -> Value:
            if value.name in own:
                return own[value.name]
            return replace(value, name=operation.name + value.name.removeprefix(self.operation.name))

        pieces = [replace(piece, output=renamed(piece.output), source=operation.source, tensors={
            slot: renamed(value) for slot, value in piece.tensors.items()}) for piece in self.pieces]
        return pieces, renamed(self.made)


def _laid_out(operation: Operation) -> list[Operation]:
    """The operation, its result with the user's axes in order in memory: what reads it may show it in another shape."""
    value = operation.output
    if operation.target != written.PERMUTED:
        return [operation]
    permuted = replace(value, name=f"{value.name}_permuted")
    return [replace(operation, output=permuted),
            write(written.in_order(), {"self": permuted}, value, operation.source)]
