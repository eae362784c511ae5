"""How far derivatives reach: operations that let none through, parameters that no derivative reaches."""

from __future__ import annotations

from dataclasses import replace

from hbpcompiler.compiler.trace.graph import Graph, Operation
from hbpcompiler.compiler.trace.source.custom_functions import STRAIGHT, custom_function_at
from hbpcompiler.errors import ModelError, listing
from hbpcompiler.rule import NO_DERIVATIVE, Rule, flat
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.shared.written import is_zero_multiple


def with_stops(graph: Graph, registry: Registry) -> Graph:
    """The graph in which no derivative passes the operations whose rules say so (detach), as torch's own end there.

    Nor does one pass a product with the number 0 in the loss, `(output * 0).sum()`, which is there for its dtype and
    its device: unless a parameter reaches the loss by that alone, as one that has to have a gradient may.
    """
    found = replace(graph, stops=frozenset(own.name for own in graph.operations if _stops(own, registry)))
    zeros = {own.name for own in graph.operations
             if own.source.in_loss and is_zero_multiple(own.target, own.attributes)}
    without = replace(found, stops=found.stops | zeros)
    trained = {value.name for value in graph.state if value.trainable}
    return without if zeros and trained & without.active == trained & found.active else found


def refuse_unreached(graph: Graph, registry: Registry) -> None:
    """ModelError if no trainable parameter reaches the loss, or only by way of steps, which are flat everywhere."""
    trained = {value.name for value in graph.state if value.trainable}
    if not trained or (trained & graph.active and not _all_flat(graph, registry, trained)):
        return
    broken = _breaks(graph, registry)
    if broken and not graph.has_loss_streams:
        raise ModelError(listing("The model's output has no derivative in a trainable parameter:", broken))
    if broken:
        raise ModelError(listing("No trainable parameter influences the loss. The way from the parameters ends here:",
                                 broken, "Let the loss take values that are differentiable in the parameters."))
    raise ModelError("No trainable parameter influences the loss: it is computed without anything that depends on "
                     "them. Let the loss use the model's output, and the output the parameters, read as attributes of "
                     "their modules: out of a closure they are constants.")


def _all_flat(graph: Graph, registry: Registry, trained: set[str]) -> bool:
    """Whether every way to the loss leads through an operation that is flat everywhere."""
    flat = {operation.name for operation in graph.operations if _is_flat(operation, registry)}
    return bool(flat & graph.active) and not trained & replace(graph, stops=graph.stops | flat).active


def _breaks(graph: Graph, registry: Registry) -> list[str]:
    """The operations that end what depends on trainable parameters, and how."""
    below = {value.name for value in graph.state if value.trainable}
    found = []
    for operation in graph.operations:
        if not any(value.name in below for value in operation.tensors.values()):
            continue
        if not operation.output.floating:
            kind = "truth values" if str(operation.output.dtype) == "torch.bool" else "whole numbers"
            reason = f"it gives {kind}, which have no derivative"
        elif operation.name in graph.stops:
            reason = "no derivative passes it"
        elif _is_flat(operation, registry):
            reason = "its derivative is zero everywhere"
        else:
            below.add(operation.name)
            continue
        found.append(f"{operation.plain} in {operation.source}: {reason}{_own(operation)}")
    return found


def _own(operation: Operation) -> str:
    """What to add where the operation stands in a function that has a backward of the user's own."""
    name = custom_function_at(operation.source.file, operation.source.line)
    return f"; it stands in the custom autograd.Function {name}: {STRAIGHT.format(name=name)}" if name else ""


def _stops(operation: Operation, registry: Registry) -> bool:
    rule = registry.find(operation.target, operation.overload)
    return isinstance(rule, Rule) and rule.jac_t is NO_DERIVATIVE


def _is_flat(operation: Operation, registry: Registry) -> bool:
    rule = registry.find(operation.target, operation.overload)
    return isinstance(rule, Rule) and rule.derivative is flat
