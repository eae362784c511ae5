"""A parameter that meets an input which depends on it too, as in a norm of a layer that is used several times.

Where the rule states no residual between the two, the operation is taken apart, so that they meet in a product.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.parameters.parameter_values import rule_of
from hbpcompiler.compiler.match.samples.sample_wise import in_pieces
from hbpcompiler.compiler.trace.graph import Graph, Operation
from hbpcompiler.rule import Rule
from hbpcompiler.rule.bilinear import cross_block_missing, inputs_met, parameters_met
from hbpcompiler.rule.registry import Registry


def with_cross_terms(graph: Graph, valued: Graph, registry: Registry) -> Graph:
    """The graph with every such operation in pieces, where the rule files or torch's own table have some.

    `valued` is the same graph with some parameters as values, which decides what meets.
    """
    active = valued.active
    lacking = {operation.name for operation in valued.operations
               if operation.name in active and _lacks_cross_terms(operation, valued, registry, active)}
    if not lacking:
        return graph
    operations: list[Operation] = []
    for operation in graph.operations:
        pieces = in_pieces(operation, registry) if operation.name in lacking else None
        operations += [operation] if pieces is None else pieces
    return replace(graph, operations=operations)


def _lacks_cross_terms(operation: Operation, graph: Graph, registry: Registry, active: AbstractSet[str]) -> bool:
    rule = rule_of(operation, registry)
    if not isinstance(rule, Rule) or operation.parts or operation.output.shared:
        return False
    op = static_op(operation, active)
    if rule.refuse(op) is not None or not cross_block_missing(rule, op):
        return False
    above = graph.parameters_above
    inputs = frozenset[str]().union(*[above[operation.tensors[name].name] for name in inputs_met(rule, op)
                                      if name in operation.tensors])
    return any(above[operation.tensors[slot].name] & inputs for slot in parameters_met(rule, op))
