"""How a loss ends: in sums and means over the batch, and in a sum of multiples of those.

L = sum_i c_i L_i, each L_i a sum or a mean. The c_i are found by sending the number 1 back through the rules of what
follows the reductions. If any L_i is a mean, L is one: L = (1/N) sum_n l_n, and a summed L_i enters l_n times N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import sympy

from hbpcompiler.compiler.match.bind import bind, is_curved, static_op
from hbpcompiler.compiler.match.matched import Ending
from hbpcompiler.compiler.trace.graph import (
    Graph,
    N,
    Operation,
    Value,
)
from hbpcompiler.errors import UnsupportedOpError, listing
from hbpcompiler.rule import LossRule, Op, Rule
from hbpcompiler.rule.registry import AnyRule

UNKNOWN = sympy.Symbol("unknown", real=True)
"""A number that is known when the program runs."""


def ending_of(graph: Graph, rules: Mapping[str, AnyRule]) -> Ending:
    """How this graph's loss ends, its multiples as numbers or as expressions in N and in UNKNOWN."""
    reductions, tail = graph.ending
    found = multiples(graph, rules, lambda operation: _of_unknowns(operation, graph.active), N)
    return Ending(tuple(reductions), tuple(tail), _overall(graph, rules), found)


def _overall(graph: Graph, rules: Mapping[str, AnyRule]) -> str:
    kinds = {_reduction(operation, rules, graph) for operation in graph.ending[0]}
    return "mean" if "mean" in kinds else "sum"


def _reduction(operation: Operation, rules: Mapping[str, AnyRule], graph: Graph) -> str:
    rule = rules[operation.name]
    assert isinstance(rule, LossRule)
    return rule.reduction(static_op(operation, graph.active))


def multiples(graph: Graph, rules: Mapping[str, AnyRule], op_of: Callable[[Operation], Op],
              batch: Any) -> dict[str, Any]:
    """By the name of each reduction, what its l_n is multiplied by in the loss's l_n; `batch` stands for N."""
    reductions, tail = graph.ending
    slopes: dict[str, Any] = {graph.loss.name: 1.0}
    for operation in reversed(tail):
        rule = rules[operation.name]
        assert isinstance(rule, Rule)
        for slot, value in operation.tensors.items():
            if value.name in graph.active:
                part = rule.jac_t[slot](op_of(operation), slopes[operation.name])
                slopes[value.name] = slopes[value.name] + part if value.name in slopes else part
    kind = _overall(graph, rules)
    found = {}
    for operation in reductions:
        slope = slopes[operation.name]
        summed = _reduction(operation, rules, graph) == "sum"
        found[operation.name] = slope * batch if summed and kind == "mean" else slope
    return found


def _of_unknowns(operation: Operation, active: AbstractSet[str]) -> Op:
    return bind(operation, {**dict.fromkeys(operation.tensors, UNKNOWN), "output": UNKNOWN}.__getitem__, active)


def is_positive(multiple: Any) -> bool:
    return bool(sympy.sympify(multiple).is_positive)


def tail_refusals(operation: Operation, rule: AnyRule, active: AbstractSet[str]) -> list[str]:
    """After the reductions only multiples and sums: anything curved would mix the samples."""
    where = f"{operation.target} in {operation.source}"
    op = _of_unknowns(operation, active)
    if isinstance(rule, Rule) and not operation.output.shape and not is_curved(rule, op):
        try:
            for slot, value in operation.tensors.items():
                if value.name in active:
                    rule.jac_t[slot](op, 1.0)
            return []
        except (KeyError, AttributeError, TypeError):
            pass  # it needs more than the numbers that multiply
    return [f"{where}: a curved function of the whole batch's loss mixes the samples; only sums and multiples of means "
            "and sums over the batch are possible"]


def refuse_endings(graph: Graph) -> None:
    """Raise UnsupportedOpError where the model makes the loss's number, or the loss adds a function of the parameters
    alone, which is no sample's."""
    active = graph.active
    made = {operation.name for operation in graph.operations}
    found: list[tuple[Operation, Value]] = []
    reductions, tail = graph.ending
    inside = [str(operation.source) for operation in reductions if not operation.source.in_loss]
    if inside:
        raise UnsupportedOpError(listing(
            "The model itself reduces the batch to one number:", inside,
            "Return what the loss is made of, such as logits, and pass the loss to hbp.compile as a function of "
            "(output, target)."))
    for operation in tail:
        found += [(operation, value) for value in operation.tensors.values()
                  if value.name in active and value.name not in made]
    if found:
        raise UnsupportedOpError(listing(
            "The loss cannot be compiled:",
            [f"{operation.target} in {operation.source}: it reads parameter '{value.key}' alone, without any sample"
             for operation, value in found],
            "A penalty has no share for each sample. Leave it out of the loss and add its derivatives to the result: "
            "for c * w.square().sum() that is 2 * c * w to grad and 2 * c to the diagonals of the curvature."))
