"""Activations: one sympy expression each, from which the compiler derives y' and y''.

Where y' can be had from the output y, the input need not be kept.
"""

import torch
import torch.nn.functional as F

from hbpcompiler.elementwise import (
    Piecewise,
    attribute,
    bound,
    dy,
    elementwise,
    expm1,
    normal_cdf,
    normal_pdf,
    settings,
    sigmoid,
    softplus,
    sympy,
    x,
    y,
)
from hbpcompiler.rule import Forward, Op, Rule

# -- smooth ----------------------------------------------------------------------------------------------------------

SIGMOID = elementwise(
    "aten.sigmoid", sigmoid(x), first=y * (1 - y), second=dy * (1 - 2 * y), forward=lambda op: torch.sigmoid(op.self)
)
TANH = elementwise(
    "aten.tanh", sympy.tanh(x), first=1 - y**2, second=-2 * y * dy, forward=lambda op: torch.tanh(op.self)
)
LOG_SIGMOID = elementwise(
    "aten.log_sigmoid",
    -softplus(-x),
    first=-expm1(y),  # 1 - sigmoid(x), without cancellation
    second=dy * (dy - 1),
    forward=lambda op: F.logsigmoid(op.self),
)
SILU = elementwise(
    "aten.silu",
    x * sigmoid(x),
    first=sigmoid(x) * (1 + x * (1 - sigmoid(x))),
    second=sigmoid(x) * (1 - sigmoid(x)) * (2 + x * (1 - 2 * sigmoid(x))),
    forward=lambda op: F.silu(op.self),
    backward=lambda op, gradient: torch.ops.aten.silu_backward(gradient, op.self),
    formula="s (1 + x (1 - s)),  s = sigmoid(x)",
    curvature="s (1 - s) (2 + x (1 - 2 s))",
)

_t, _s = sympy.tanh(softplus(x)), sigmoid(x)
MISH = elementwise(
    "aten.mish",
    x * _t,
    first=_t + x * (_s * (1 - _t**2)),
    second=_s * (1 - _t**2) * (2 + x * (1 - _s - 2 * _t * _s)),
    forward=lambda op: F.mish(op.self),
    backward=lambda op, gradient: torch.ops.aten.mish_backward(gradient, op.self),
    formula="t + x s (1 - t^2),  t = tanh(softplus(x)),  s = sigmoid(x)",
    curvature="s (1 - t^2) (2 + x (1 - s - 2 t s))",
)


def _gelu() -> Rule:
    inner = 0.7978845608028654 * (x + 0.044715 * x**3)  # sqrt(2 / pi)
    slope = 0.7978845608028654 * (1 + 0.134145 * x**2)
    curve = 0.7978845608028654 * 0.26829 * x
    t = sympy.tanh(inner)

    def expression(op: Op) -> sympy.Expr:
        return x * normal_cdf(x) if op.approximate == "none" else x * (1 + t) / 2

    def first(op: Op) -> sympy.Expr:
        return normal_cdf(x) + x * normal_pdf(x) if op.approximate == "none" else (1 + t + x * (1 - t**2) * slope) / 2

    def second(op: Op) -> sympy.Expr:
        if op.approximate == "none":
            return normal_pdf(x) * (2 - x**2)
        return (1 - t**2) * (slope + x * (curve / 2 - t * slope**2))

    return elementwise(
        "aten.gelu",
        expression,
        first=first,
        second=second,
        forward=lambda op: F.gelu(op.self, approximate=op.approximate),
        backward=lambda op, gradient: torch.ops.aten.gelu_backward(gradient, op.self, approximate=op.approximate),
        cases=settings({}, {"approximate": "tanh"}),
        formula="Phi(x) + x phi(x),  phi = Phi', the normal density,  Phi its integral or what torch takes for it",
        curvature="2 phi(x) + x phi'(x),  for the normal density phi(x) (2 - x^2)",
    )


GELU = _gelu()


def _softplus() -> Rule:
    # Exactly linear above the threshold. From a threshold of 20 on, y tells on which side x was; below, x is needed.
    beta, threshold = attribute("beta"), attribute("threshold")

    def first(op: Op) -> sympy.Expr:
        if op.threshold >= 20:
            return Piecewise((1, y > threshold / beta), (-expm1(-beta * y), True))
        return Piecewise((1, beta * x > threshold), (sigmoid(beta * x), True))

    return elementwise(
        "aten.softplus",
        Piecewise((x, beta * x > threshold), (softplus(beta * x) / beta, True)),
        first=first,
        second=beta * dy * (1 - dy),  # above the threshold dy = 1, and it vanishes
        forward=lambda op: F.softplus(op.self, op.beta, op.threshold),
        cases=settings({}, {"beta": 2.0}, {"beta": 1.5, "threshold": 0.5}, {"beta": 0.3, "threshold": 30}),
    )


SOFTPLUS = _softplus()

# -- exponential on one side -----------------------------------------------------------------------------------------


def _elu(
    operation: str,
    alpha: sympy.Expr,
    scale: sympy.Expr,
    slope: sympy.Expr,
    forward: Forward,
    given: list[dict[str, object]],
) -> Rule:
    """scale * x for x > 0, else alpha * scale * (exp(slope * x) - 1)."""

    below = slope * (y + alpha * scale)

    def first(op: Op) -> sympy.Expr | None:
        if bound(op, alpha) < 0:
            return None  # then y does not tell the side
        if bound(op, alpha * slope) == 1:  # y' has no jump at 0
            return scale + slope * sympy.Min(y, 0)
        return Piecewise((scale, y > 0), (below, True))

    def second(op: Op) -> sympy.Expr | None:
        if bound(op, alpha) < 0:
            return None
        return Piecewise((slope * (dy if bound(op, alpha * slope) == 1 else below), y < 0), (0, True))

    # At 0 itself torch has the slope of the left side, and no curvature.
    at_zero = (alpha * scale * slope * x, sympy.Eq(x, 0))
    expression = Piecewise((scale * x, x > 0), at_zero, (alpha * scale * expm1(slope * x), True))
    return elementwise(operation, expression, first=first, second=second, forward=forward, cases=settings(*given))


_alpha, _scale, _slope = attribute("alpha"), attribute("scale"), attribute("input_scale")
ELU = _elu(
    "aten.elu",
    _alpha,
    _scale,
    _slope,
    lambda op: (
        F.elu(op.self, float(op.alpha))
        if op.scale == op.input_scale == 1
        else torch.ops.aten.elu(op.self, op.alpha, op.scale, op.input_scale)
    ),
    [{}, {"alpha": 0.7}, {"alpha": 1.5, "scale": 1.2, "input_scale": 0.5}, {"alpha": -0.5}],
)
SELU = _elu(
    "aten.selu",
    sympy.Rational("1.6732632423543772848170429916717"),
    sympy.Rational("1.0507009873554804934193349852946"),
    sympy.Integer(1),
    lambda op: F.selu(op.self),
    [{}],
)
CELU = _elu(
    "aten.celu",
    _alpha,
    sympy.Integer(1),
    1 / _alpha,
    lambda op: F.celu(op.self, float(op.alpha)),
    [{}, {"alpha": 2.5}],
)
