"""The output at which columns begin, as the value with samples in front that it shows.

What the model returns keeps the shape that the user's code gave it: [T, N, *z], or [p*N, *z]. Derivatives go through
[N, T, *z] and [N, p, *z], from which match makes it again.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.samples.sample_wise import misplaced
from hbpcompiler.compiler.trace.graph import Graph, Operation
from hbpcompiler.rule import Rule, Structure
from hbpcompiler.rule.registry import Registry


def with_shown_end(graph: Graph, registry: Registry) -> Graph:
    """The graph whose end has its samples in front, if the output is made of such a value by moving its numbers."""
    value = graph.makers[graph.end].output if graph.end else None
    while value is not None and (not value.batched or misplaced(value)):
        maker = graph.makers.get(value.name)
        if maker is None or not _moves(maker, registry, graph):
            return graph
        (value,) = maker.tensors.values()
    return graph if value is None else replace(graph, end=value.name)


def _moves(operation: Operation, registry: Registry, graph: Graph) -> bool:
    """Whether its result has the same numbers, in another order or shape."""
    rule = registry.find(operation.target, operation.overload)
    if not isinstance(rule, Rule) or len(operation.tensors) != 1:
        return False
    (value,) = operation.tensors.values()
    selects = rule.structure_of(static_op(operation, graph.active)) is Structure.SELECTION
    return selects and value.dtype == operation.output.dtype and math.prod(value.shape) == math.prod(
        operation.output.shape)
