"""Operations whose slope is infinite at zero, as a logarithm's or a root's is: behind a ReLU autograd masks what comes
from there, and a product with zero does not."""

from __future__ import annotations

import sympy

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule import Rule, Structure


def is_steep(matched: Matched) -> bool:
    """Whether derivatives pass an operation, number by number, that has an infinite slope at zero."""
    return any(operation.name in matched.active and _is_steep(matched, operation)
               for operation in matched.graph.operations)


def _is_steep(matched: Matched, operation: Operation) -> bool:
    rule = matched.rules.get(operation.name)
    op = static_op(operation, matched.active)
    if not isinstance(rule, Rule) or rule.expression is None or rule.structure_of(op) is not Structure.ELEMENTWISE:
        return False
    stated = rule.expression(op)
    if stated is None:
        return False
    stated = sympy.sympify(stated)
    slopes = (sympy.diff(stated, symbol).subs(symbol, 0) for symbol in stated.free_symbols)
    return any(slope.has(sympy.zoo, sympy.oo, -sympy.oo, sympy.nan) for slope in slopes)
