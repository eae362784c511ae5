"""One operation carried out sample by sample: whether it can be, and torch.vmap's way of writing it in N."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.vmapped import NotSampleWiseError, written
from hbpcompiler.compiler.match.samples.merged_positions import positions
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch
from hbpcompiler.compiler.trace.fx_graph.reader import PieceReader
from hbpcompiler.compiler.trace.graph import N, Operation, Value
from hbpcompiler.rule.registry import Registry

BATCHES = (7, 11)
"""Two batch sizes, to tell from each other what is a batch size and what is a length of the model."""


def depends(length: Any) -> bool:
    """Whether a length depends on the batch size."""
    return N in getattr(length, "free_symbols", ())


def misplaced(value: Value) -> bool:
    """Whether the batch size sits anywhere but alone on axis 0."""
    return any(depends(length) for length in (value.shape[1:] if value.batched else value.shape))


def of_one(value: Value) -> tuple[int, ...]:
    """The value's shape for a batch of one."""
    return _shape_of(value, 1)


def _shape_of(value: Value, batch: int) -> tuple[int, ...]:
    return tuple(int(sympy.sympify(length).subs(N, batch)) for length in value.shape)


def number_for(batch: int, item: Any) -> Any:
    """An attribute as it is for a batch of this size."""
    return arithmetic(item, batch) if depends_on_batch(item) else item


# -- whether samples, or the parts of each, stay apart ---------------------------------------------------------------


def order_of_result(operation: Operation, minor: AbstractSet[str]) -> bool | None:
    """Whether the result counts the samples within each position: its axis [p*N] is p times all samples.

    `minor` are the arguments that do. None if the operation mixes samples: on a batch of random samples it is not what
    it is on each of them, a batch of one.
    """
    batch = 3
    try:
        whole, together = _tried(operation, batch)
        alone = [_called(operation, [_sample(tensor, value, n, batch, value.name in minor) for tensor, value in zip(
            whole, operation.tensors.values(), strict=True)], 1) for n in range(batch)]
        for order in (False, True):
            if all(_alike(one, _sample(together, operation.output, n, batch, order)) for n, one in enumerate(alone)):
                return order
    except (RuntimeError, ValueError, IndexError):  # of random masks it may have another shape
        return None
    return None


def parts_stay_apart(operation: Operation) -> bool:
    """Whether an operation on [p*N, *z] acts on each of the p N parts by itself."""
    sampled = {slot for slot, value in operation.tensors.items() if any(map(depends, value.shape))}
    found = {positions(operation.tensors[slot]) for slot in sampled}
    return found == {positions(operation.output)} and 0 not in found and rows_stay_apart(operation, sampled, 2)


def rows_stay_apart(operation: Operation, sampled: AbstractSet[str], batch: int) -> bool:
    """Whether each row of the result, along its first axis, depends on that row of these arguments alone."""
    lists = any(isinstance(item, list) and any(slot in operation.tensors for slot in item if isinstance(slot, str))
                for item in operation.attributes.values())
    if lists or not sampled or any(not operation.tensors[slot].shape for slot in sampled):
        return False
    try:
        whole, together = _tried(operation, batch)
        given = dict(zip(operation.tensors, whole, strict=True))
        if any(len(given[slot]) != len(together) for slot in sampled):
            return False
        for row in _spread(len(together)):
            own = [tensor[row : row + 1] if slot in sampled else tensor for slot, tensor in given.items()]
            if not _alike(_called(operation, own, 1), together[row : row + 1]):
                return False
    except (RuntimeError, ValueError, IndexError):
        return False
    return True


def _spread(rows: int, most: int = 16) -> list[int]:
    """The numbers of some rows, the first and the last among them: what mixes rows mixes most of them."""
    if rows <= most:
        return list(range(rows))
    return sorted({round(place * (rows - 1) / (most - 1)) for place in range(most)})


def signature(operation: Operation, minor: AbstractSet[str]) -> Hashable:
    """The same for operations that the checks here cannot tell from each other, as those of a layer in each block."""
    names = [value.name for value in operation.tensors.values()]
    values = tuple((slot, value.shape, value.dtype, value.numbering, value.name in minor, names.index(value.name))
                   for slot, value in operation.tensors.items())
    return operation.target, operation.overload, operation.index, repr(operation.attributes), values


def _tried(operation: Operation, batch: int) -> tuple[list[Tensor], Any]:
    """Random arguments for a batch of this size, and the operation on them. Whole numbers are 0 and 1, or 0 where the
    operation takes no other, as indices along an axis of one; matrices are positive definite where it takes no other.
    """
    for numbers, definite in ((2, False), (1, False), (2, True)):
        try:
            drawn = _drawn(operation, batch, numbers)
            drawn = [_definite(tensor) for tensor in drawn] if definite else drawn
            return drawn, _called(operation, drawn, batch)
        except (RuntimeError, ValueError, IndexError):
            continue
    drawn = _drawn(operation, batch, 1)
    return drawn, _called(operation, drawn, batch)


def _definite(tensor: Tensor) -> Tensor:
    """The same, but square matrices of real numbers with a large diagonal, and symmetric."""
    if tensor.dim() < 2 or tensor.shape[-1] != tensor.shape[-2] or not tensor.is_floating_point():
        return tensor
    return tensor + tensor.mT + 2 * tensor.shape[-1] * torch.eye(tensor.shape[-1], dtype=tensor.dtype, device="cpu")


def _drawn(operation: Operation, batch: int, numbers: int) -> list[Tensor]:
    """Random arguments for a batch of this size, so many whole numbers among them."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for value in operation.tensors.values():
        shape = _shape_of(value, batch)
        if value.numbering:
            counted = torch.arange(shape[0], dtype=value.dtype, device="cpu")
            drawn.append(counted.view(-1, *[1] * (len(shape) - 1)).expand(shape))
            continue
        if value.floating:
            tensor = torch.rand(shape, generator=generator, device="cpu")
        else:
            most = 2 if value.dtype is torch.bool else numbers
            tensor = torch.randint(most, shape, generator=generator, device="cpu")
        drawn.append(tensor.to(value.dtype))
    return drawn


def _called(operation: Operation, values: Sequence[Tensor], batch: int, run: Callable[..., Any] | None = None) -> Any:
    """The operation, or what stands for it, on these tensors."""
    known = dict(zip(operation.tensors, values, strict=True))
    run = aten.overload_of(operation) if run is None else run
    return aten.call(operation, run, known.__getitem__, lambda item: number_for(batch, item))


def _sample(tensor: Tensor, value: Value, n: int, batch: int, minor: bool) -> Tensor:
    """Sample n's part as a batch of one: of an axis [p*N], samples and positions in the order that the graph has."""
    if value.numbering:  # of a batch of one, from 0
        return tensor[: tensor.shape[0] // batch]
    for axis, length in enumerate(value.shape):
        if depends(length):
            each = tensor.shape[axis] // batch
            if minor:
                return tensor.unflatten(axis, (each, batch)).select(axis + 1, n)
            return tensor.narrow(axis, n * each, each)
    return tensor


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), atol=1e-4, equal_nan=True)


# -- written by torch.vmap -------------------------------------------------------------------------------------------


def sample_by_sample(operation: Operation, tensors: Mapping[str, Value], registry: Registry,
                     run: Callable[..., Any] | None = None) -> tuple[list[Operation], Value]:
    """The operation on [N, *batch of one] in operations that keep the sample axis in front, and the value they make.

    `run` is what stands for the operation, if it is taken apart first.
    """
    table: dict[Any, Any] = {}
    for _ in range(aten.DECOMPOSITION_ROUNDS):
        few, many = (PieceReader(operation, [_with_batch(value, batch) for value in tensors.values()])
                     .pieces(_vmapped(operation, batch, table, run)) for batch in BATCHES)
        missing = [piece for piece in few[0] if lacks_rule(piece, registry) or aten.is_own(piece)]
        more = aten.decompositions(missing, registry)
        if set(more) <= set(table):
            break
        table |= more
    if any(lacks_rule(piece, registry) for piece in missing) and not lacks_rule(operation, registry):
        raise NotSampleWiseError  # there is a rule for the whole, and none for a piece
    return _symbolic(few, many, list(tensors.values()))


def _with_batch(value: Value, batch: int) -> Value:
    return replace(value, shape=_shape_of(value, batch))


def _vmapped(operation: Operation, batch: int, table: Mapping[Any, Any],
             run: Callable[..., Any] | None) -> torch.fx.GraphModule:
    axes = tuple(0 if any(map(depends, value.shape)) else None for value in operation.tensors.values())
    values = [torch.zeros((batch, *of_one(value)) if axis == 0 else of_one(value), dtype=value.dtype, device="cpu")
              for value, axis in zip(operation.tensors.values(), axes, strict=True)]
    return written(lambda *given: _called(operation, given, 1, run), axes, values, table)


def _symbolic(few: tuple[list[Operation], Value], many: tuple[list[Operation], Value],
              given: Sequence[Value]) -> tuple[list[Operation], Value]:
    """One list of operations in N out of two for two batch sizes."""
    if [piece.target for piece in few[0]] != [piece.target for piece in many[0]]:
        raise NotSampleWiseError
    values = {value.name: value for value in given}
    operations = []
    for one, other in zip(few[0], many[0], strict=True):
        shape = tuple(_either(a, b) for a, b in zip(one.output.shape, other.output.shape, strict=True))
        output = replace(one.output, shape=shape, shared=False)
        if misplaced(output):
            raise NotSampleWiseError
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
        raise NotSampleWiseError
    return N * (few // BATCHES[0])


# -- written in other operations -------------------------------------------------------------------------------------


def in_pieces(operation: Operation, registry: Registry) -> list[Operation] | None:
    """The operation taken apart as the rule files or torch's own table have it; one of the pieces makes its value."""
    made = aten.decomposition(aten.overload_of(operation), registry)
    if made is None:
        return None
    tensors = list(operation.tensors.values())

    def traced(batch: int) -> tuple[list[Operation], Value]:
        values = [torch.zeros(_shape_of(value, batch), dtype=value.dtype, device="cpu") for value in tensors]
        graph = make_fx(lambda *given: _called(operation, given, batch, made), tracing_mode="fake")(*values)
        return PieceReader(operation, [_with_batch(value, batch) for value in tensors]).pieces(graph)

    try:
        pieces, result = _symbolic(traced(BATCHES[0]), traced(BATCHES[1]), tensors)
    except (NotSampleWiseError, RuntimeError, ValueError, IndexError):
        return None
    if any(lacks_rule(piece, registry) for piece in pieces) or all(piece.name != result.name for piece in pieces):
        return None

    def renamed(value: Value) -> Value:
        return operation.output if value.name == result.name else value

    return [replace(piece, output=renamed(piece.output), tensors={slot: renamed(value) for slot, value in
                                                                  piece.tensors.items()}) for piece in pieces]


def lacks_rule(piece: Operation, registry: Registry) -> bool:
    """Whether derivatives could not pass it, if they came there."""
    return piece.output.floating and registry.find(piece.target, piece.overload) is None
