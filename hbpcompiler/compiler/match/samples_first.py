"""The sample axis brought to the front where a model has it elsewhere: behind the positions, or merged with them.

What a model does to a batch it does to a batch of one. So an operation on a value such as [T, N, d] is carried out
sample by sample: torch.vmap over batches of one writes it in operations on [N, T, 1, d], every value with its sample
axis in front. Whether the operation keeps samples apart is checked with random numbers. Where any of this fails the
graph stays as it is, and what moves the sample axis is refused by its rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.compiler.match import aten
from hbpcompiler.compiler.match.merged_positions import positions, taken_apart
from hbpcompiler.compiler.trace.graph import (
    Graph,
    N,
    Operation,
    Value,
)
from hbpcompiler.compiler.trace.numbers import arithmetic, depends_on_batch
from hbpcompiler.compiler.trace.reader import PieceReader
from hbpcompiler.rule import LossRule, Rule
from hbpcompiler.rule.registry import Registry

BATCHES = (7, 11)
"""Two batch sizes, to tell from each other what is a batch size and what is a length of the model."""


class _NotSampleWiseError(Exception):
    """The operation cannot be carried out sample by sample."""


def misplaced(value: Value) -> bool:
    """Whether the batch size sits anywhere but alone on axis 0."""
    return any(_depends(length) for length in (value.shape[1:] if value.batched else value.shape))


def samples_first(graph: Graph, registry: Registry) -> tuple[Graph, list[str]]:
    """The graph with the sample axis in front of every value that derivatives reach; or as it is, and why."""
    active = graph.active
    found = {operation.name for operation in graph.operations
             if operation.name in active and misplaced(operation.output)}
    if not found or found & {output.name for output in graph.outputs}:
        return graph, []
    rewriting = _Rewriting(graph, registry, active)
    try:
        return rewriting.run(), []
    except _NotSampleWiseError:
        operation = rewriting.current
        advice = "keep the samples in front, as in x.reshape(x.shape[0], -1, x.shape[-1])"
        module = operation.source.module_type.rpartition(".")[2]
        if module:
            advice += f"; if {module} has an argument batch_first, it may be missing"
        return graph, [f"{operation.target} in {operation.source}: its samples are not in front (its result has shape "
                       f"{list(operation.output.shape)}), and it mixes them or has no form that keeps them apart; "
                       f"{advice}"]


def _depends(length: Any) -> bool:
    return N in getattr(length, "free_symbols", ())


def _of_one(value: Value) -> tuple[int, ...]:
    """The value's shape for a batch of one."""
    return tuple(int(sympy.sympify(length).subs(N, 1)) for length in value.shape)


class _Rewriting:
    def __init__(self, graph: Graph, registry: Registry, active: AbstractSet[str]) -> None:
        self.graph, self.registry, self.active = graph, registry, active
        self.operations: list[Operation] = []
        self.batches_of_one: dict[str, Value] = {}
        self.current = graph.operations[0]

    def run(self) -> Graph:
        for operation in self.graph.operations:
            self.current = operation
            values = [*operation.tensors.values(), operation.output]
            if operation.name not in self.active or not any(map(misplaced, values)):
                self.operations.append(operation)
                continue
            if not any(map(_depends, operation.output.shape)):
                self.operations += self._reduced(operation)
                continue
            self._convert(operation)
            if not misplaced(operation.output):
                one = self.batches_of_one[operation.name]
                self.operations.append(_unary("squeeze", one, operation.output, operation))
        return replace(self.graph, operations=self.operations)

    def _reduced(self, operation: Operation) -> list[Operation]:
        """What sums over the samples: a loss, if it may be that of the positions taken apart."""
        rule = self.registry.find(operation.target, operation.overload)
        given = [value for value in operation.tensors.values() if any(map(_depends, value.shape))]
        merged = all(positions(value) > 1 for value in given)
        if not isinstance(rule, LossRule) or not (merged or rule.positions == 1):
            raise _NotSampleWiseError
        found = taken_apart(operation, {value.name: self._one(value, operation) for value in given}, self.registry)
        if found is None:
            raise _NotSampleWiseError
        return found

    def _one(self, value: Value, user: Operation) -> Value:
        """[N, *batch of one]; values without samples are what they are."""
        if not any(map(_depends, value.shape)):
            return value
        if value.name not in self.batches_of_one:
            if misplaced(value):
                if value.name not in self.graph.makers:
                    raise _NotSampleWiseError
                self._convert(self.graph.makers[value.name])
            else:
                output = Value(f"{value.name}_one", (N, 1, *value.shape[1:]), value.dtype, "result")
                self.operations.append(_unary("unsqueeze", value, output, user))
                self.batches_of_one[value.name] = output
        return self.batches_of_one[value.name]

    def _convert(self, operation: Operation) -> None:
        tensors = {slot: self._one(value, operation) for slot, value in operation.tensors.items()}
        if sum(map(_depends, operation.output.shape)) > 1:
            raise _NotSampleWiseError
        rule = self.registry.find(operation.target, operation.overload)
        ranks = {len(value.shape) for value in (*operation.tensors.values(), operation.output)
                 if any(map(_depends, value.shape))}
        if not any(map(_depends, (length for value in tensors.values() for length in value.shape))):
            pieces, output = _for_each_sample(operation)
            self.operations += pieces
        elif isinstance(rule, Rule) and rule.merged and len(ranks) == 1:
            # It counts no axis from the front, so it need not be taken apart.
            output = Value(f"{operation.name}_one", (N, *_of_one(operation.output)), operation.output.dtype, "result")
            self.operations.append(replace(operation, output=output, tensors=tensors))
        else:
            pieces, output = self._sample_by_sample(operation, tensors)
            self.operations += pieces
        self.batches_of_one[operation.name] = output

    def _sample_by_sample(self, operation: Operation, tensors: Mapping[str, Value]) -> tuple[list[Operation], Value]:
        _check_samples_stay_apart(operation)
        table: dict[Any, Any] = {}
        for _ in range(aten.DECOMPOSITION_ROUNDS):
            few, many = (PieceReader(operation, [_with_batch(value, batch) for value in tensors.values()])
                         .pieces(_vmapped(operation, batch, table)) for batch in BATCHES)
            more = aten.decompositions([piece for piece in few[0]
                                        if self.registry.find(piece.target, piece.overload) is None], self.registry)
            if set(more) <= set(table):
                break
            table |= more
        return _symbolic(few, many, list(tensors.values()))


def _for_each_sample(operation: Operation) -> tuple[list[Operation], Value]:
    """What has no samples until it is laid out along them, [1, T, d] as [T, N, d]: made once, and given to each."""
    _check_samples_stay_apart(operation)
    once = Value(f"{operation.name}_once", _of_one(operation.output), operation.output.dtype, "result")
    each = Value(f"{operation.name}_one", (N, *once.shape), once.dtype, "result")
    attributes = {name: [_number(part) for part in item] if isinstance(item, list) else _number(item)
                  for name, item in operation.attributes.items()}
    expanded = Operation("aten.expand", "", each, {"self": once}, {"size": list(each.shape), "implicit": False}, 0,
                         operation.source)
    return [replace(operation, output=once, attributes=attributes), expanded], each


def _unary(name: str, value: Value, output: Value, user: Operation) -> Operation:
    """squeeze(1) or unsqueeze(1)."""
    return Operation(f"aten.{name}", "dim" if name == "squeeze" else "", output, {"self": value}, {"dim": 1}, 0,
                     user.source)


def _with_batch(value: Value, batch: int) -> Value:
    return replace(value, shape=tuple(int(sympy.sympify(length).subs(N, batch)) for length in value.shape))


def _number(item: Any) -> Any:
    """An attribute as it is for a batch of one."""
    return arithmetic(item, 1) if depends_on_batch(item) else item


def _call_of_one(operation: Operation, values: Sequence[Tensor]) -> Any:
    known = dict(zip(operation.tensors, values, strict=True))
    return aten.call(operation, aten.overload_of(operation), known.__getitem__, _number)


def _axes(operation: Operation) -> tuple[int | None, ...]:
    return tuple(0 if any(map(_depends, value.shape)) else None for value in operation.tensors.values())


def _vmapped(operation: Operation, batch: int, table: Mapping[Any, Any]) -> torch.fx.GraphModule:
    values = [torch.zeros((batch, *_of_one(value)) if axis == 0 else _of_one(value), dtype=value.dtype)
              for value, axis in zip(operation.tensors.values(), _axes(operation), strict=True)]
    function = torch.vmap(lambda *given: _call_of_one(operation, given), in_dims=_axes(operation))
    try:
        traced: torch.fx.GraphModule = make_fx(function, decomposition_table=dict(table),
                                               tracing_mode="fake")(*values)
    except (RuntimeError, ValueError, IndexError) as error:
        raise _NotSampleWiseError from error
    return traced


def _check_samples_stay_apart(operation: Operation) -> None:
    """The operation on a batch of random samples against the operation on each of them, a batch of one."""
    batch = 3
    generator = torch.Generator().manual_seed(0)
    whole, ones = [], []
    for value in operation.tensors.values():
        shape = tuple(int(sympy.sympify(length).subs(N, batch)) for length in value.shape)
        drawn = torch.rand(shape, generator=generator) if value.floating else torch.randint(2, shape,
                                                                                            generator=generator)
        tensor = drawn.to(value.dtype)
        whole.append(tensor)
        ones.append([_sample(tensor, value, n, batch) for n in range(batch)])
    try:
        together = aten.call(operation, aten.overload_of(operation), dict(zip(operation.tensors, whole,
                                                                              strict=True)).__getitem__,
                             lambda item: arithmetic(item, batch) if depends_on_batch(item) else item)
        for n in range(batch):
            alone = _call_of_one(operation, [samples[n] for samples in ones])
            part = _sample(together, operation.output, n, batch)
            like = alone.shape == part.shape
            if not like or not torch.allclose(alone.double(), part.double(), atol=1e-4, equal_nan=True):
                raise _NotSampleWiseError
    except (RuntimeError, ValueError, IndexError) as error:
        raise _NotSampleWiseError from error


def _sample(tensor: Tensor, value: Value, n: int, batch: int) -> Tensor:
    """Sample n's part as a batch of one: of an axis [p*N], samples and positions in the order that the graph has."""
    for axis, length in enumerate(value.shape):
        if _depends(length):
            each = tensor.shape[axis] // batch
            return tensor.narrow(axis, n * each, each)
    return tensor


def _symbolic(few: tuple[list[Operation], Value], many: tuple[list[Operation], Value],
              given: Sequence[Value]) -> tuple[list[Operation], Value]:
    """One list of operations in N out of two for two batch sizes."""
    if [piece.target for piece in few[0]] != [piece.target for piece in many[0]]:
        raise _NotSampleWiseError
    values = {value.name: value for value in given}
    operations = []
    for one, other in zip(few[0], many[0], strict=True):
        shape = tuple(_either(a, b) for a, b in zip(one.output.shape, other.output.shape, strict=True))
        output = replace(one.output, shape=shape, shared=False)
        if misplaced(output):
            raise _NotSampleWiseError
        values[output.name] = output
        tensors = {slot: values[value.name] for slot, value in one.tensors.items()}
        attributes = {name: _either(item, other.attributes[name]) for name, item in one.attributes.items()}
        operations.append(replace(one, output=output, tensors=tensors, attributes=attributes))
    return operations, values[few[1].name]


def _either(few: Any, many: Any) -> Any:
    """A number for any batch size, from those for two."""
    if isinstance(few, list):
        return [_either(a, b) for a, b in zip(few, many, strict=True)]
    if isinstance(few, bool) or not isinstance(few, int) or few == many:
        return few
    if few % BATCHES[0] or few * BATCHES[1] != many * BATCHES[0]:
        raise _NotSampleWiseError
    return N * (few // BATCHES[0])
