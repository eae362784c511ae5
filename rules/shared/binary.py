"""The frame of elementwise operations on two operands, each of which may be broadcast, constant or a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.rule import Case, Contraction, JacT, Op, Residual, Rule, Structure, Tensor, Window, operand_symbol
from hbpcompiler.rule.symbolic import exactly

from .aligned import is_whole, lifted, misaligned, unbroadcast, varying

Look = Callable[[str], Any]
"""An operand, or "output", by its name; None or a number stays itself."""
Pull = Callable[[Op, str, Any, Look], Any]
"""(op, operand, cotangents, look) -> cotangents times the result's derivative in that operand, not yet summed over what
is broadcast. What `look` gives is ready to meet the cotangents, be they columns or not."""


@dataclass(frozen=True)
class Binary:
    """What the rules of operations on two operands of these names say."""

    names: tuple[str, str]
    pull: Pull
    contraction: Callable[[Op, str], Contraction | None]
    written: Callable[[Op, Any, Any], Any] | None

    def jac_t(self, name: str) -> JacT:
        def jac_t(op: Op, columns: Tensor) -> Tensor:
            return unbroadcast(op, name, self.pull(op, name, columns, lambda operand: lifted(op, operand)))

        return jac_t

    def derivative(self, op: Op) -> Tensor:
        name = varying(op, self.names)[0]
        pulled: Tensor = self.pull(op, name, torch.ones_like(op.output), lambda operand: getattr(op, operand))
        return pulled

    def structure(self, op: Op) -> Structure:
        found = varying(op, self.names)
        return Structure.ELEMENTWISE if len(found) == 1 and is_whole(op, found[0]) else Structure.GENERAL

    def params(self, op: Op) -> Mapping[str, Contraction]:
        found = {}
        for name in self.names:
            if op.has(name) and not op.has_samples(name) and (contraction := self.contraction(op, name)) is not None:
                found[name] = contraction
        return found

    def window(self, op: Op) -> Window | None:
        """Of two images that vary, each output reads one position."""
        shape = op.shape("output")
        both = len(varying(op, self.names)) == 2 and all(is_whole(op, name) for name in self.names)
        if not both or len(shape) < 2:
            return None
        ones = [1] * (len(shape) - 1)
        return Window(ones, ones, ones, [0] * len(ones), fill=1.0)  # where quotients and powers are finite

    def expression(self, op: Op) -> Any:
        """In sympy; a number stays the number that it is, or that it is of the batch's size."""
        symbols = [operand_symbol(name) if op.has(name) else exactly(getattr(op, name)) for name in self.names]
        return None if self.written is None else self.written(op, *symbols)


def binary(
    operation: str | Sequence[str],
    forward: Callable[[Op], Any],
    pull: Pull,
    residual: Residual | Callable[[Op], Residual],
    cases: Sequence[Case],
    params: Callable[[Op, str], Contraction | None] = lambda op, name: None,
    refuse: Callable[[Op], str | None] | None = None,
    names: tuple[str, str] = ("self", "other"),
    written: Callable[[Op, Any, Any], Any] | None = None,
    formula: str = "S dy/da to a, S dy/db to b",
) -> Rule:
    """A rule for an operation on two operands of these names; `params(op, operand)` for an operand that may be a
    parameter, and `written(op, first, second)` for the operation in sympy, None at a use that
    has no such form."""

    of = Binary(names, pull, params, written)
    return Rule(
        operations=[operation] if isinstance(operation, str) else operation,
        forward=forward,
        jac_t={name: of.jac_t(name) for name in names},
        params=of.params,
        residual=residual,
        formula=formula,
        structure=of.structure,
        derivative=of.derivative,
        expression=None if written is None else of.expression,
        refuse=refuse or (lambda op: misaligned(op, names)),
        merged=True,
        window=of.window,
        cases=cases,
    )


def operands(**attributes: Any) -> list[Case]:
    """Operands of all kinds that meet."""
    both = ("self", "other")
    made = {"other": away_from_zero}
    shapes = [((3,), (3,)), ((2, 3), (2, 1)), ((1, 3), (2, 1)), ((), ())]
    cases = [Case({"self": a, "other": b}, attributes, both, make=made) for a, b in shapes]
    for name in both:
        cases.append(Case({"self": (2, 3), "other": (2, 3)}, attributes, both, make=made, constant=(name,)))
        batched = tuple(operand for operand in both if operand != name)
        for shape in ((3,), (2, 3), (2, 1), (), (1, 2, 3), (1,)):
            given = {"self": (2, 3), "other": (2, 3), name: shape}
            cases.append(Case(given, attributes, batched, make=made, constant=(name,)))
            cases.append(Case(given, attributes, batched, make=made))
        cases.append(Case({"self": (2, 1), "other": (2, 1), name: (2, 3)}, attributes, batched, make=made))
    return cases


def away_from_zero(shape: Sequence[int]) -> Tensor:
    drawn = torch.randn(tuple(shape), dtype=torch.float64)
    return drawn + drawn.sign()
