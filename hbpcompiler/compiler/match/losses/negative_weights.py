"""Negative weights and targets of losses: with them a loss function is not as convex as its rule says."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import networkx as nx
from torch import Tensor

from hbpcompiler.compiler.match.losses.targets import origin
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.match.operation.examples import Examples
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.compiler.trace.trace import Traced
from hbpcompiler.rule import LossRule
from hbpcompiler.rule.registry import Registry


def with_negative_weights(traced: Traced, registry: Registry) -> frozenset[str]:
    """Names of the loss functions with a rule in which a weight is negative in places, in the batch of the trace, or
    a target that the loss makes itself is, and the rule has none such.

    What is neither their input nor their target multiplies them. In pieces their signs are known as those of all else.
    """
    graph, found = traced.graph, set[str]()
    for operation in graph.operations:
        rule = registry.find(operation.target, operation.overload)
        if isinstance(rule, LossRule) and operation.name in graph.active:
            names = _weights(graph, operation, rule)
            made = _made_target(graph, registry, operation)
            values = _values(traced, registry, names | made)
            negative = {name for name, value in values.items() if bool((value < 0).any())}
            op = static_op(operation, graph.active)
            if negative & names or any(rule.check(op, values[name]) for name in negative & made):
                found.add(operation.name)
    return frozenset(found)


def _weights(graph: Graph, operation: Operation, rule: LossRule) -> set[str]:
    """Class weights, weights made of the batch: those that no parameter is in."""
    return {value.name for slot, value in operation.tensors.items()
            if slot not in (rule.input, "target") and _is_known(graph, value)}


def _made_target(graph: Graph, registry: Registry, operation: Operation) -> set[str]:
    """Numbers that the loss makes of its target, which the rule does not get to see when a program is called."""
    value = operation.tensors.get("target")
    if value is None or value.name not in graph.makers or not _is_known(graph, value):
        return set()
    rules = {own.name: rule for own in graph.operations
             if (rule := registry.find(own.target, own.overload)) is not None}
    return set() if origin(graph, rules, value, graph.active) in graph.batch else {value.name}


def _is_known(graph: Graph, value: Value) -> bool:
    return value.floating and value.name not in graph.active and not graph.parameters_above[value.name]


def _values(traced: Traced, registry: Registry, names: AbstractSet[str]) -> Mapping[str, Tensor]:
    """Values that no parameter is in, in the batch of the trace."""
    graph = traced.graph
    known: Mapping[str, Tensor] = {value.name: traced.state[value.key] for value in graph.state if value.name in names}
    if set(known) != names:
        network = graph.network()
        needed = set(names).union(*[nx.ancestors(network, name) for name in names])
        part = Graph(graph.inputs, graph.targets, [value for value in graph.state if value.name in needed],
                     [own for own in graph.operations if own.name in needed], (), graph.loss)
        examples = Examples(traced.batch, traced.state, len(traced.batch[0]))
        known = examples.of(part, lambda own: registry.find(own.target, own.overload))
    return known
