"""Operations of the graph as one function of torch's calls (see `Composite`)."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.rule.composite import Composite

ARGUMENTS = {"self": "x"}
"""What a function calls its arguments, where that is not what torch calls them."""
PUBLIC = (torch, torch.special, torch.linalg, torch.fft, torch.nn.functional)
OF_TWO_MINDS = ("reduction",)
"""Arguments whose default is a word in torch's tables: torch.triplet_margin_loss takes "none", its schema "mean"."""


def composite(name: str, operations: Sequence[Operation], inputs: Mapping[str, Value]) -> Composite:
    """What these operations, in order, make of `inputs` (by slot): the last one's result."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    known: dict[str, Any] = {}
    for slot, value in inputs.items():
        node = graph.placeholder(_argument(slot, graph))
        known[value.name] = known[slot] = fx.Proxy(node, tracer)
    lead = next((known[slot] for slot, value in inputs.items() if value.batched), None)
    first = next(iter(known.values()))

    def other(item: Any) -> Any:
        if isinstance(item, torch.device):
            return first.device
        return arithmetic(item, _samples(lead, item)) if depends_on_batch(item) else item

    for operation in operations:
        def tensor(slot: str, operation: Operation = operation) -> Any:
            return known[operation.tensors[slot].name]

        def run(*positional: Any, operation: Operation = operation, **keywords: Any) -> Any:
            target, (positional, keywords) = aten.callee(operation), _short(operation, positional, keywords)
            if not any(isinstance(item, list) and any(part is None for part in item) for item in positional):
                target = _public(target)  # an index of None is what only torch.ops takes
            return tracer.create_proxy("call_function", target, positional, keywords)

        known[operation.name] = aten.call(operation, run, tensor, other)
    output = operations[-1].output
    graph.output(known[output.name].node)
    return Composite(name, graph, [value.batched for value in inputs.values()], output.sample_shape, output.dtype,
                     output.batched)


def _argument(slot: str, graph: fx.Graph) -> str:
    name = ARGUMENTS.get(slot, slot.replace(".", "_"))
    taken = {node.name for node in graph.nodes}
    return name if name not in taken else f"{name}_{len(taken)}"


def _samples(lead: Any, item: Any) -> Any:
    """The number of samples, read off the first tensor that has some."""
    if lead is None:
        raise ValueError(f"{item} depends on the number of samples, and no argument has any")
    return lead.shape[0]


def _short(operation: Operation, positional: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """The arguments without the last ones that are the schema's defaults."""
    arguments = aten.overload_of(operation)._schema.arguments
    own = [argument for argument in arguments if not argument.kwarg_only]
    kept = list(positional)
    while kept and _is_default(own[len(kept) - 1], kept[-1]):
        kept.pop()
    by_name = {argument.name: argument for argument in arguments}
    return tuple(kept), {name: item for name, item in keywords.items() if not _is_default(by_name[name], item)}


def _is_default(argument: Any, item: Any) -> bool:
    if isinstance(item, fx.Proxy) or not argument.has_default_value() or argument.name in OF_TWO_MINDS:
        return False
    default = argument.default_value
    return item is default or (type(item) is type(default) and isinstance(item, int | float | str | bool)
                               and item == default)


@cache
def _public(packet: Any) -> Any:
    """torch's own name for an operation of its own: torch.special.i0e, not torch.ops.aten.special_i0e."""
    is_torchs = str(packet).startswith("aten.")  # no mine::relu, which may be anything
    for module in PUBLIC if is_torchs and not packet.__name__.startswith("_") else ():
        short = packet.__name__.removeprefix(f"{module.__name__.rpartition('.')[2]}_")
        found = getattr(module, short, None)
        if isinstance(found, types.BuiltinFunctionType) and found.__name__ == packet.__name__:
            return found
    return packet
