"""Between match and plan: the elementwise operations of one module that act on one value become one operation.

Softsign is exported as abs, add and div; a GELU written by hand as eight operations. Taken one by one they would send
columns back through every branch, and a diagonal could not cross them. Their sympy expressions composed are one
elementwise rule, with one derivative and one diagonal residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import product
from typing import Any

import sympy
import torch
from torch import Tensor

from hbpcompiler.compiler.match.chained import Chain, chained
from hbpcompiler.compiler.match.digits import keeps_digits
from hbpcompiler.compiler.match.edges import loses_edge
from hbpcompiler.compiler.match.operation.bind import bind, static_op
from hbpcompiler.compiler.match.signs import never_negative
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.elementwise import derivatives, elementwise, x
from hbpcompiler.limits import DEFAULT_LIMITS
from hbpcompiler.rule import Diagonal, Rule, Zero, operand_symbol
from hbpcompiler.rule.convexity import curvature_sign, slope_sign
from hbpcompiler.rule.registry import AnyRule
from hbpcompiler.rule.simpler import without_overflow

UNREAL = (sympy.I, sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
"""What sympy makes of a number outside a function's domain: it cannot be compared, and torch has its own NaN for it."""


def fuse(graph: Graph, rules: Mapping[str, AnyRule],
         longest: int = DEFAULT_LIMITS.fused_operations) -> tuple[Graph, dict[str, AnyRule]]:
    """The graph and the rules with each region of elementwise operations replaced by one operation.

    Expressions with more than `longest` sympy operations are left in pieces.
    """
    operations, fused = list(graph.operations), dict(rules)
    active = graph.active
    for last in reversed(graph.operations):
        if last not in operations or not _joins(last, fused, active):
            continue
        region, source = _region(last, graph, operations, fused, active)
        if len(region) < 2 or source is None:
            continue
        expression = _composed(last, region, source, fused, active, longest)
        if expression is None:
            continue
        name = last.source.module_type.rpartition(".")[2].lower() or "elementwise"
        whole = replace(last, target=f"fused.{name}", overload="", tensors={"self": source}, attributes={}, index=0)
        inner = [operation for operation in operations if operation in region]
        chain = Chain(inner, source, rules, active)
        made = elementwise("hbpcompiler.fused", expression, forward=chain.result)
        joined = _with_digits(expression, made, whole, chain)
        if joined is None or _loses_edge(expression, joined, whole, active):
            continue
        if last.source.in_loss and (curvature_sign(joined, static_op(whole, active)) is None or
                                    _keeps_sign(inner, fused, active, never_negative(graph))):
            continue
        fused = {name: rule for name, rule in fused.items() if name not in {own.name for own in region}}
        fused[whole.name] = joined
        operations = [whole if own is last else own for own in operations if own is last or own not in region]
    return replace(graph, operations=operations), fused


def _keeps_sign(inner: Sequence[Operation], rules: Mapping[str, AnyRule], active: AbstractSet[str],
                signs: AbstractSet[str]) -> bool:
    """Whether what these operations of a loss are one after the other is known to be convex, or concave, as they are,
    by Boyd and Vandenberghe's rules of composition. They say more of what they act on than the whole does."""
    slopes: dict[str, set[int | None]] = {inner[-1].name: {1}}
    curvatures = set[int | None]()
    for operation in reversed(inner):
        rule, op = rules[operation.name], static_op(operation, active)
        assert isinstance(rule, Rule)
        never = [slot for slot, value in operation.tensors.items() if value.name in signs]
        (above, *others) = slopes[operation.name]
        slope = None if others else above
        if not isinstance(rule.residual_of(op), Zero):
            own = curvature_sign(rule, op, never)
            curvatures.add(slope * own if slope and own else None)
        for slot, value in operation.tensors.items():
            own = slope_sign(rule, op, slot, never)
            slopes.setdefault(value.name, set()).add(slope * own if slope and own else None)
    return None not in curvatures and len(curvatures) < 2


def _joins(operation: Operation, rules: Mapping[str, AnyRule], active: AbstractSet[str]) -> bool:
    """Whether the operation is elementwise in what it differentiates and says so as an expression."""
    rule = rules.get(operation.name)
    if not isinstance(rule, Rule) or rule.expression is None or rule.forward is None:
        return False
    if operation.name not in active:
        return False
    if any(hasattr(item, "free_symbols") for item in operation.attributes.values()):
        return False  # a number that depends on the batch's size is not known yet
    if rule.expression(static_op(operation, active)) is None:
        return False
    values = list(operation.tensors.values())
    return all(value.name in active and value.role != "parameter" and value.shape == operation.output.shape
               for value in values)


def _region(last: Operation, graph: Graph, operations: list[Operation], rules: Mapping[str, AnyRule],
            active: AbstractSet[str]) -> tuple[list[Operation], Value | None]:
    """The operations above `last`, of its module, that nobody else reads; and the one value they all come from."""
    region = [last]
    makers = {operation.name: operation for operation in operations}
    grown = True
    while grown:
        grown = False
        for value in _inputs(region):
            maker = makers.get(value.name)
            if maker is None or not _joins(maker, rules, active) or (
                    maker.source.module, maker.source.in_loss) != (last.source.module, last.source.in_loss):
                continue
            readers = [own for own in operations if any(item.name == value.name for item in own.tensors.values())]
            if value in graph.outputs or any(reader not in region for reader in readers):
                continue
            region.append(maker)
            grown = True
            break
    inputs = _inputs(region)
    return region, inputs[0] if len(inputs) == 1 else None


def _inputs(region: list[Operation]) -> list[Value]:
    made = {operation.name for operation in region}
    found = {value.name: value for operation in region for value in operation.tensors.values()}
    return [value for name, value in found.items() if name not in made]


def _composed(last: Operation, region: list[Operation], source: Value, rules: Mapping[str, AnyRule],
              active: AbstractSet[str], longest: int) -> Any:
    """What `last` is of `source`, as an expression in x; None where sympy would not give good derivatives."""
    by_name = {operation.name: operation for operation in region}
    known: dict[str, Any] = {source.name: x}

    def expression_of(name: str) -> Any:
        if name not in known:
            operation = by_name[name]
            rule = rules[name]
            assert isinstance(rule, Rule)
            assert rule.expression is not None
            own = rule.expression(static_op(operation, active))
            inner = {operand_symbol(slot): expression_of(value.name) for slot, value in operation.tensors.items()}
            known[name] = _inserted(own, inner, longest)
        return known[name]

    expression = expression_of(last.name)
    if expression is not None:
        expression = without_overflow(expression)
    if expression is None or any(derivative.has(*UNREAL) for derivative in derivatives(expression)):
        return None
    return expression


def _inserted(own: Any, inner: Mapping[Any, Any], longest: int) -> Any:
    """An operation's expression of its operands' expressions; None if one is missing, or it is no good or too long."""
    if any(expression is None for expression in inner.values()):
        return None
    pieced = {symbol for symbol, expression in inner.items() if expression.has(sympy.Piecewise)}
    for choice in own.atoms(sympy.Piecewise):
        if any(condition.free_symbols & pieced for _, condition in choice.args):
            return None  # a kink of what has kinks itself: sympy solves for them, at length and not always
    # Choices outermost: where one is constant its slope is zero, also beside another's infinite one, as torch has it.
    whole = sympy.piecewise_fold(own.subs(inner, simultaneous=True))
    return None if whole.has(*UNREAL) or sympy.count_ops(whole) > longest else whole


def _with_digits(expression: Any, joined: Rule, whole: Operation, chain: Chain) -> Rule | None:
    """The rule, by the chain rule if what sympy has written loses digits; None if both do.

    Of curvature one will do that loses a few: in pieces, whose products have columns, more are lost towards 0.
    """
    assert joined.forward is not None
    forward = joined.forward

    def run(given: Tensor) -> Any:
        return forward(bind(whole, {"self": given}.__getitem__, chain.active, False))

    for strict, rule in product((True, False), (joined, chained(joined, chain))):
        def find(given: Tensor, made: Tensor, rule: Rule = rule) -> tuple[Any, Any]:
            op = bind(whole, {"self": given, "output": made}.__getitem__, chain.active)
            residual = rule.residual_of(op)
            assert rule.derivative is not None
            bend = residual.diagonal(op, torch.ones_like(made)) if isinstance(residual, Diagonal) else 0.0
            return rule.derivative(op), bend

        if keeps_digits(expression, run, find, strict):
            return rule
    return None


def _loses_edge(expression: Any, joined: Rule, whole: Operation, active: AbstractSet[str]) -> bool:
    """Whether the joined operation differentiates where the operations that it stands for do not."""
    assert joined.forward is not None
    assert joined.derivative is not None
    forward, derivative = joined.forward, joined.derivative

    def run(given: Tensor) -> Any:
        return forward(bind(whole, {"self": given}.__getitem__, active, False))

    def slope(given: Tensor, made: Tensor) -> Any:
        return derivative(bind(whole, {"self": given, "output": made}.__getitem__, active))

    return loses_edge(expression, run, slope)
