"""What is computed of parameters alone, as operations on a batch of one sample that is the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.operation.vmapped import NotSampleWiseError, written
from hbpcompiler.compiler.match.samples.sample_wise import lacks_rule, rows_stay_apart
from hbpcompiler.compiler.trace.fx_graph.reader import PieceReader
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.rule import Rule
from hbpcompiler.rule.positions import over_positions
from hbpcompiler.rule.registry import Registry

Call = Callable[..., Any]


def shared_pieces(operation: Operation, tensors: Mapping[str, Value],
                  registry: Registry) -> tuple[list[Operation], Value]:
    """The operation with its tensors [1, *value] where they are `shared`, in operations that have rules; and its
    result. By the first of these ways that there is: torch.vmap of the operation; the operation itself on [1, p, *z],
    where its rule takes its first axis for samples; torch.vmap of what it is taken apart into.
    """
    call = _as_call(operation, tensors, aten.overload_of(operation))
    try:
        return _pieces(call, operation, tensors, registry)
    except NotSampleWiseError:
        pass
    if (whole := _by_parts(operation, tensors, registry)) is not None:
        return [whole], whole.output
    for apart in _taken_apart(operation, tensors, registry):
        try:
            return _pieces(apart, operation, tensors, registry)
        except NotSampleWiseError:
            continue
    try:
        return _pieces(call, operation, tensors, registry, required=False)
    except NotSampleWiseError:
        pass
    if (wrong := registry.wrong_derivatives.get(operation.target)) is not None:
        raise UnsupportedOpError(f"{operation.target} in {operation.source}: {wrong}")
    raise UnsupportedOpError(f"{operation.target} in {operation.source}: it computes with parameters, but not in a way "
                             "that torch.vmap can do sample by sample; write it in another way")


def _pieces(call: Call, operation: Operation, tensors: Mapping[str, Value], registry: Registry,
            required: bool = True) -> tuple[list[Operation], Value]:
    table: dict[Any, Any] = {}
    for _ in range(aten.DECOMPOSITION_ROUNDS):
        traced = _vmapped(call, tensors, table, 1)
        pieces, result = PieceReader(operation, list(tensors.values())).pieces(traced)
        missing = [piece for piece in pieces if registry.find(piece.target, piece.overload) is None]
        more = aten.decompositions(missing, registry)
        if set(more) <= set(table):
            break
        table |= more
    if required and any(lacks_rule(piece, registry) for piece in pieces):
        raise NotSampleWiseError
    shared = _with_samples(traced, _vmapped(call, tensors, table, 7))
    return _marked(pieces, result, {f"{operation.name}_{name}" for name in shared})


def _marked(pieces: list[Operation], result: Value, shared: set[str]) -> tuple[list[Operation], Value]:
    """The pieces with every value [1, *z] marked that is [7, *z] for seven samples."""
    def mark(value: Value) -> Value:
        return replace(value, shared=True) if value.name in shared else value

    marked = [replace(piece, output=mark(piece.output), tensors={slot: mark(value) for slot, value in
                                                                 piece.tensors.items()}) for piece in pieces]
    return marked, mark(result)


def _vmapped(call: Call, tensors: Mapping[str, Value], table: Mapping[Any, Any],
             batch: int) -> torch.fx.GraphModule:
    axes = [0 if value.shared else None for value in tensors.values()]
    return written(call, axes, _zeros(tensors, batch), table)


def _zeros(tensors: Mapping[str, Value], batch: int | None) -> list[Tensor]:
    """Arguments for so many samples; None: for one, without a sample axis."""
    lead = [] if batch is None else [batch]
    return [torch.zeros([*lead, *value.sample_shape] if value.shared else value.sample_shape, dtype=value.dtype,
                        device="cpu")
            for value in tensors.values()]


def _with_samples(one: torch.fx.GraphModule, seven: torch.fx.GraphModule) -> set[str]:
    """Names of the nodes that have a sample axis. Raises NotSampleWiseError where it is not the first everywhere."""
    found = set()
    for a, b in zip(one.graph.nodes, seven.graph.nodes, strict=True):
        few, many = a.meta.get("val"), b.meta.get("val")
        if not isinstance(few, Tensor) or few.shape == many.shape:
            continue
        if few.shape[0] != 1 or many.shape[0] != 7 or few.shape[1:] != many.shape[1:]:
            raise NotSampleWiseError
        found.add(a.name)
    return found


def _as_call(operation: Operation, tensors: Mapping[str, Value], run: Call) -> Call:
    """The operation, or what stands for it, as a function of its tensors."""
    return lambda *values: aten.call(operation, run, dict(zip(tensors, values, strict=True)).__getitem__)


def _taken_apart(operation: Operation, tensors: Mapping[str, Value], registry: Registry) -> Iterator[Call]:
    """The operation in pieces, before torch.vmap meets it: as the rule files or torch's own table have it, and then all
    that is in it too."""
    overload = aten.overload_of(operation)
    made = aten.decomposition(overload, registry)
    call = _as_call(operation, tensors, overload if made is None else made)
    if made is not None:
        yield call
    try:
        yield make_fx(call, decomposition_table=aten.core_decompositions(), tracing_mode="fake")(*_zeros(tensors, None))
    except (RuntimeError, ValueError, IndexError):
        return


def _by_parts(operation: Operation, tensors: Mapping[str, Value], registry: Registry) -> Operation | None:
    """The operation on [1, p, *z] as on p parts of the one sample, where it takes each by itself."""
    rule = registry.find(operation.target, operation.overload)
    output = Value(f"{operation.name}_each", (1, *operation.output.shape), operation.output.dtype, "result",
                   shared=True)
    whole = replace(operation, output=output, tensors=tensors, parts=True)
    sampled = {slot for slot, value in tensors.items() if value.shared}
    if not isinstance(rule, Rule) or not operation.output.shape or not rows_stay_apart(operation, sampled, 1):
        return None
    return whole if over_positions(rule).refuse(static_op(whole, frozenset())) is None else None
