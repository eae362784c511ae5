"""Sums, differences, products and quotients of two operands.

A product's residual is a cross block [[0, g], [g, 0]] = g/2 ([1; 1][1; 1]^T - [1; -1][1; -1]^T): two columns per
element, of opposite signs; where one operand is repeated along axes (a gate), two for each of its entries. It vanishes
where only one operand carries derivatives.
"""

import math
from collections.abc import Callable

import torch

from hbpcompiler.rule import ZERO, Case, Contraction, Diagonal, Factor, Noise, Op, Residual, Tensor, called
from hbpcompiler.rule.symbolic import exactly

from .shared.aligned import (
    added,
    columns_per_element,
    is_whole,
    multiplied,
    other_than,
    scaled,
    unbroadcast,
    varying,
)
from .shared.binary import Look, binary, operands
from .shared.gates import gate_columns, gate_drawn, is_gate, some_columns
from .shared.units import square_unit

NUMBER = [Case({"self": (2, 3)}, {"other": number}) for number in (1, -1, 1.7)]

ROUNDED = [
    Case({"self": (2, 3)}, {"other": 0.7, "rounding_mode": mode}) for mode in ("trunc", None)
]

# -- sums ------------------------------------------------------------------------------------------------------------

ADD = binary(
    "aten.add",
    lambda op: op.self + scaled(op.other, op.alpha),
    lambda op, name, g, look: scaled(g, 1 if name == "self" else op.alpha),
    ZERO,
    [*operands(), *operands(alpha=2)[-4:], *NUMBER],
    lambda op, name: added(op, name, lambda op: 1 if name == "self" else op.alpha),
    written=lambda op, a, b: a + exactly(op.alpha) * b,
    formula="S to each of a + b",
)
SUB = binary(
    "aten.sub",
    lambda op: op.self - scaled(op.other, op.alpha),
    lambda op, name, g, look: scaled(g, 1 if name == "self" else -op.alpha),
    ZERO,
    [*operands(), *operands(alpha=2)[-4:], *NUMBER],
    lambda op, name: added(op, name, lambda op: 1 if name == "self" else -op.alpha),
    written=lambda op, a, b: a - exactly(op.alpha) * b,
    formula="S to a, -S to b of a - b",
)
RSUB = binary(
    "aten.rsub",
    lambda op: op.other - scaled(op.self, op.alpha),
    lambda op, name, g, look: scaled(g, 1 if name == "other" else -op.alpha),
    ZERO,
    [*operands(), *operands(alpha=2)[-4:], *NUMBER],
    lambda op, name: added(op, name, lambda op: 1 if name == "other" else -op.alpha),
    written=lambda op, a, b: b - exactly(op.alpha) * a,
    formula="-S to a, S to b of b - a",
)


# -- products --------------------------------------------------------------------------------------------------------


def gate_of(op: Op, *names: str) -> str | None:
    """Which of these operands is repeated and has the fewest entries, and so numbers the columns."""
    return next((name for name in names if is_gate(op, name)), None)


def count_with(*names: str) -> Callable[[Op], int]:
    """Two columns for each element of the result, or for each entry of such an operand."""
    return lambda op: 2 * math.prod(op.shape(gate_of(op, *names) or "output"))


def product_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    if gate := gate_of(op, "self", "other"):
        return gate_columns(op, gate, gradient)
    unit = square_unit(op, "self", "other")
    mine, signs = columns_per_element(op, gradient / 2 * unit)
    mine = unbroadcast(op, "self", torch.cat([mine, mine], 1))
    met, _ = columns_per_element(op, gradient / 2 / unit)
    met = unbroadcast(op, "other", torch.cat([met, -met], 1))
    return {"self": mine, "other": met}, torch.cat([signs, -signs], 1)


def product_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    """One sign for both columns of an element, or of an entry of a gate: their products with themselves are gone."""
    if gate := gate_of(op, "self", "other"):
        return gate_drawn(op, gate, gradient, noise)
    unit = square_unit(op, "self", "other")
    signs = noise(*op.shape("output"))
    root = (gradient.abs() / 2 * unit).sqrt().unsqueeze(1) * signs
    met = (gradient.abs() / 2 / unit).sqrt().copysign(gradient).unsqueeze(1) * signs
    return {"self": unbroadcast(op, "self", torch.cat([root, root], 1)),
            "other": unbroadcast(op, "other", torch.cat([met, -met], 1))}


def some_of_product(op: Op, gradient: Tensor, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return some_columns(op, gate_of(op, "self", "other") or "self", gradient, numbers)


def product_parameter(op: Op, name: str) -> Contraction:
    met = other_than(name)
    return multiplied(op, name, lambda op: getattr(op, met), is_whole(op, met))


PRODUCT = Factor(count_with("self", "other"), product_factor, some_of_product, product_drawn, own={})
MUL = binary(
    "aten.mul",
    lambda op: op.self * op.other,
    lambda op, name, g, look: g * look(other_than(name)),
    lambda op: PRODUCT if len(varying(op)) == 2 else ZERO,
    [*operands(), *NUMBER],
    product_parameter,
    written=lambda op, a, b: a * b,
    formula="S b to a, S a to b of a b;  residual: g between a and b",
)

# -- quotients -------------------------------------------------------------------------------------------------------


def rounding(op: Op) -> str | None:
    """"floor" or "trunc", and then the result is flat."""
    mode: str | None = getattr(op, "rounding_mode", None)
    return mode


def quotient(op: Op) -> Tensor:
    return torch.div(op.self, op.other, rounding_mode=rounding(op)) if rounding(op) else op.self / op.other


def quotient_pull(op: Op, name: str, cotangents: Tensor, look: Look) -> Tensor:
    if rounding(op):
        return torch.zeros_like(cotangents)
    if name == "self":
        return cotangents / look("other")
    return -cotangents * look("output") / look("other")


def slope_and_bend(op: Op, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """a, and the curvature in each entry of y."""
    slope = called("slope", -gradient / op.other / op.other)
    bend = unbroadcast(op, "other", (-2 * slope * op.output).unsqueeze(1))
    return slope, bend.reshape(-1, math.prod(op.shape("other")))


def some_of_quotient(op: Op, gradient: Tensor, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    slope, bend = slope_and_bend(op, gradient)
    return some_columns(op, "other", slope, numbers, bend)


def quotient_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """With f = x / y and a = -g / y^2 the residual is [[0, a], [a, -2 a f]].

    That is a / 2t ([1; t-f][1; t-f]^T - [1; -t-f][1; -t-f]^T) for any t; this t keeps both parts of one size, in units
    of the operands' sizes.
    """
    f = op.output
    if gate := gate_of(op, "other"):
        return gate_columns(op, gate, *slope_and_bend(op, gradient))
    t = torch.hypot(square_unit(op, "other", "self", quotient=True), f)
    root, signs = columns_per_element(op, -gradient / op.other / op.other / (2 * t))
    columns = {
        "self": unbroadcast(op, "self", torch.cat([root, root], 1)),
        "other": unbroadcast(op, "other", torch.cat([root * (t - f).unsqueeze(1), root * (-t - f).unsqueeze(1)], 1)),
    }
    return columns, torch.cat([signs, -signs], 1)


def quotient_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    """Random sums of `quotient_factor`'s columns."""
    if gate := gate_of(op, "other"):
        slope, bend = slope_and_bend(op, gradient)
        return gate_drawn(op, gate, slope, noise, bend)
    f = op.output
    t = torch.hypot(square_unit(op, "other", "self", quotient=True), f)
    slope = -gradient / op.other / op.other / (2 * t)
    root = slope.abs().sqrt().unsqueeze(1) * noise(*op.shape("output"))
    turned = t.copysign(slope)
    met = torch.cat([root * (turned - f).unsqueeze(1), root * (-turned - f).unsqueeze(1)], 1)
    return {"self": unbroadcast(op, "self", torch.cat([root, root], 1)), "other": unbroadcast(op, "other", met)}


def quotient_diagonal(op: Op, gradient: Tensor) -> Tensor:
    curvature = 2 * gradient / op.other * op.output / op.other
    return unbroadcast(op, "other", curvature.unsqueeze(1)).squeeze(1)


def quotient_residual(op: Op) -> Residual:
    if not op.varies("other") or rounding(op):
        return ZERO
    if not op.varies("self"):
        return Diagonal(quotient_diagonal)
    by_entries = is_gate(op, "other") or is_whole(op, "other")
    return Factor(count_with("other"), quotient_factor, some_of_quotient if by_entries else None, quotient_drawn,
                  own={"other": quotient_diagonal})


def quotient_parameter(op: Op, name: str) -> Contraction | None:
    if name == "other" or rounding(op):
        return None  # curved in the parameter itself, which a contraction cannot say
    return multiplied(op, name, lambda op: torch.ones_like(op.output) / op.other, True)


DIV = binary(
    "aten.div",
    quotient,
    quotient_pull,
    quotient_residual,
    [*operands(), *NUMBER, *operands(rounding_mode="floor")[:6], *ROUNDED],
    quotient_parameter,
    written=lambda op, a, b: None if rounding(op) else a / b,
    formula="S / b to a, -S y / b to b of y = a / b;  residual: -g / b^2 between a and b, 2 g y / b^2 at b",
)
