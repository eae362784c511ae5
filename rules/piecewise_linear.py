"""Piecewise linear activations and their like: a slope per piece, read off the output where it tells the piece.

At kinks the conventions are torch's, and at NaN, which is none of the limits.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from hbpcompiler.elementwise import Piecewise, attribute, elementwise, settings, sympy, x, y
from hbpcompiler.rule import Op, Rule

RELU = elementwise(
    "aten.relu",
    Piecewise((0, x <= 0), (x, True)),
    first=Piecewise((1, sympy.Ne(y, 0)), (0, True)),
    forward=lambda op: F.relu(op.self),
    backward=lambda op, gradient: torch.ops.aten.threshold_backward(gradient, op.output, 0),
)


def _leaky_relu() -> Rule:
    slope = attribute("negative_slope")

    def first(op: Op) -> sympy.Expr:
        return Piecewise((1, (y if op.negative_slope >= 0 else x) > 0), (slope, True))

    return elementwise(
        "aten.leaky_relu",
        Piecewise((x, x > 0), (slope * x, True)),
        first=first,
        forward=lambda op: F.leaky_relu(op.self, op.negative_slope),
        cases=settings({}, {"negative_slope": 0.2}, {"negative_slope": -0.5}, {"negative_slope": 1.5}),
    )


LEAKY_RELU = _leaky_relu()


def _rrelu() -> Rule:
    """In eval mode a leaky relu with the mean of both slopes; in train mode slopes are drawn."""
    slope = (attribute("lower") + attribute("upper")) / 2
    rule = elementwise(
        "aten.rrelu",
        Piecewise((x, x > 0), (slope * x, True)),
        first=Piecewise((1, x > 0), (slope, True)),
        forward=lambda op: F.rrelu(op.self, op.lower, op.upper),
        cases=settings({}, {"lower": 0.2, "upper": 0.6}),
    )
    reason = ("it draws its slopes in train mode; call model.eval(), use nn.LeakyReLU, or write torch.where(x > 0, x, "
              "x * torch.empty_like(x).uniform_(lower, upper))")
    return replace(rule, refuse=lambda op: reason if op.training else None)


RRELU = _rrelu()


def _between(low: sympy.Expr, high: sympy.Expr, inside: sympy.Expr) -> sympy.Expr:
    return Piecewise((low, x <= low), (high, x >= high), (inside, True))


_low, _high = attribute("min_val"), attribute("max_val")
HARDTANH = elementwise(
    "aten.hardtanh",
    _between(_low, _high, x),
    first=Piecewise((1, sympy.Ne(y, _low) & sympy.Ne(y, _high)), (0, True)),
    forward=lambda op: F.hardtanh(op.self, float(op.min_val), float(op.max_val)),
    cases=settings({}, {"min_val": -0.3, "max_val": 0.7}),
)
RELU6 = elementwise(
    "aten.relu6",
    _between(sympy.Integer(0), sympy.Integer(6), x),
    first=Piecewise((1, sympy.Ne(y, 0) & sympy.Ne(y, 6)), (0, True)),
    forward=lambda op: F.relu6(op.self),
)

# y cannot tell here: it is rounded to the edge's value before x is there. The sixth is torch's own, in every dtype, and
# not the derivative of torch's values: no expression states both.
_sixth = sympy.Float(torch.tensor(1 / 6, dtype=torch.float32, device="cpu").item(), 17)
_inside = (x > -3) & (x < 3)
HARDSIGMOID = replace(
    elementwise(
        "aten.hardsigmoid",
        None,
        first=Piecewise((_sixth, _inside), (0, True)),
        second=sympy.Integer(0),
        forward=lambda op: F.hardsigmoid(op.self),
    ),
    order=("increasing",),
)
HARDSWISH = elementwise(
    "aten.hardswish",
    Piecewise((0, x <= -3), (x, x >= 3), (x * (x + 3) / 6, True)),
    second=Piecewise((sympy.Rational(1, 3), _inside), (0, True)),
    forward=lambda op: F.hardswish(op.self),
)

_kept = Piecewise((1, sympy.Ne(y, 0)), (0, True))
_lambd = attribute("lambd")
HARDSHRINK = elementwise(
    "aten.hardshrink",
    Piecewise((0, (x >= -_lambd) & (x <= _lambd)), (x, True)),
    first=_kept,
    forward=lambda op: F.hardshrink(op.self, op.lambd),
    cases=settings({}, {"lambd": 0.2}),
)
SOFTSHRINK = elementwise(
    "aten.softshrink",
    Piecewise((x - _lambd, x > _lambd), (x + _lambd, x < -_lambd), (0, True)),
    first=_kept,
    forward=lambda op: F.softshrink(op.self, op.lambd),
    cases=settings({}, {"lambd": 0.2}),
)
THRESHOLD = elementwise(
    "aten.threshold",
    Piecewise((attribute("value"), x <= attribute("threshold")), (x, True)),
    first=Piecewise((0, x <= attribute("threshold")), (1, True)),
    forward=lambda op: torch.threshold(op.self, op.threshold, op.value),
    cases=settings({"threshold": 0.1, "value": -2.0}, {"threshold": -0.4, "value": 0}),
)
