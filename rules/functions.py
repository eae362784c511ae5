"""Elementary functions of one operand: exponentials, logarithms, roots, trigonometry, and what is flat."""

from collections.abc import Sequence

import sympy
import torch

from hbpcompiler.elementwise import Piecewise, attribute, dy, elementwise, expm1, settings, x, y
from hbpcompiler.rule import Case, Op, Tensor
from hbpcompiler.rule.symbolic import log1p


def _positive(shape: Sequence[int]) -> Tensor:
    return 0.2 + torch.rand(tuple(shape), dtype=torch.float64)


def _unit(shape: Sequence[int]) -> Tensor:
    return 1.8 * torch.rand(tuple(shape), dtype=torch.float64) - 0.9


POSITIVE = [Case({"self": (4, 3)}, make={"self": _positive})]
UNIT = [Case({"self": (4, 3)}, make={"self": _unit})]

# -- exponentials, logarithms, powers --------------------------------------------------------------------------------

EXP = elementwise("aten.exp", sympy.exp(x), first=y, second=y, forward=lambda op: op.self.exp())
EXPM1 = elementwise("aten.expm1", expm1(x), first=y + 1, second=dy, forward=lambda op: op.self.expm1())
LOG = elementwise("aten.log", sympy.log(x), second=-(dy**2), forward=lambda op: op.self.log(), cases=POSITIVE)
LOG1P = elementwise("aten.log1p", log1p(x), second=-(dy**2), forward=lambda op: op.self.log1p(), cases=POSITIVE)
LOG2 = elementwise("aten.log2", sympy.log(x) / sympy.log(2), forward=lambda op: op.self.log2(), cases=POSITIVE)
LOG10 = elementwise("aten.log10", sympy.log(x) / sympy.log(10), forward=lambda op: op.self.log10(), cases=POSITIVE)
SQRT = elementwise(
    "aten.sqrt", sympy.sqrt(x), first=1 / (2 * y), second=-2 * dy**3, forward=lambda op: op.self.sqrt(), cases=POSITIVE
)
RSQRT = elementwise(
    "aten.rsqrt",
    1 / sympy.sqrt(x),
    first=-(y**3) / 2,
    second=3 * y**5 / 4,
    forward=lambda op: op.self.rsqrt(),
    cases=POSITIVE,
)
RECIPROCAL = elementwise(
    "aten.reciprocal", 1 / x, first=-(y**2), second=2 * y**3, forward=lambda op: op.self.reciprocal(), cases=POSITIVE
)
SQUARE = elementwise("aten.square", x**2, forward=lambda op: op.self.square())
NEG = elementwise("aten.neg", -x, forward=lambda op: -op.self)



def logit_slopes(op: Op) -> tuple[sympy.Expr, sympy.Expr]:
    """Outside of [0, 1] the first is NaN, as the value is, and as torch has it; 0 where `eps` limits the input."""
    eps = getattr(op, "eps", None)
    low, high = (0, 1) if eps is None else (attribute("eps"), 1 - attribute("eps"))
    outside = sympy.nan if eps is None else 0
    beyond = (x < low) | (x > high)
    first = 1 / (x * (1 - x))
    return Piecewise((outside, beyond), (first, True)), Piecewise((0, beyond), ((2 * x - 1) * first**2, True))


def _share(shape: Sequence[int]) -> Tensor:
    return 0.05 + 0.9 * torch.rand(tuple(shape), dtype=torch.float64)


LOGIT = elementwise(
    "aten.logit",
    None,
    first=lambda op: logit_slopes(op)[0],
    second=lambda op: logit_slopes(op)[1],
    forward=lambda op: torch.logit(op.self, op.eps),
    cases=[Case({"self": (4, 3)}, {"eps": eps}, make={"self": _share}) for eps in (None, 0.2)],
)

# -- trigonometry ----------------------------------------------------------------------------------------------------

SIN = elementwise("aten.sin", sympy.sin(x), second=-y, forward=lambda op: op.self.sin())
COS = elementwise("aten.cos", sympy.cos(x), second=-y, forward=lambda op: op.self.cos())
TAN = elementwise(
    "aten.tan", sympy.tan(x), first=1 + y**2, second=2 * y * dy, forward=lambda op: op.self.tan(), cases=UNIT
)
ASIN = elementwise("aten.asin", sympy.asin(x), second=x * dy**3, forward=lambda op: op.self.asin(), cases=UNIT)
ACOS = elementwise("aten.acos", sympy.acos(x), second=x * dy**3, forward=lambda op: op.self.acos(), cases=UNIT)
ATAN = elementwise("aten.atan", sympy.atan(x), second=-2 * x * dy**2, forward=lambda op: op.self.atan())
SINH = elementwise("aten.sinh", sympy.sinh(x), second=y, forward=lambda op: op.self.sinh())
COSH = elementwise("aten.cosh", sympy.cosh(x), second=y, forward=lambda op: op.self.cosh())
ERF = elementwise("aten.erf", sympy.erf(x), second=-2 * x * dy, forward=lambda op: op.self.erf())
ERFC = elementwise(
    "aten.erfc", 1 - sympy.erf(x), second=-2 * x * dy, forward=lambda op: op.self.erfc(), cases=settings({})
)

# -- kinks and steps -------------------------------------------------------------------------------------------------



def rounded(op: Op) -> Tensor:
    """Round has digits only in its overload with `decimals`."""
    digits: int = getattr(op, "decimals", 0)
    return op.self.round(decimals=digits) if digits else op.self.round()


ABS = elementwise(
    "aten.abs", sympy.Abs(x), first=sympy.sign(x), second=sympy.Integer(0), forward=lambda op: op.self.abs()
)
_flat = {"first": sympy.Integer(0), "second": sympy.Integer(0)}
STEPS = [
    elementwise("aten.sign", sympy.sign(x), forward=lambda op: op.self.sign(), **_flat),
    elementwise("aten.floor", sympy.floor(x), forward=lambda op: op.self.floor(), **_flat),
    elementwise("aten.ceil", sympy.ceiling(x), forward=lambda op: op.self.ceil(), **_flat),
    elementwise("aten.round", None, forward=rounded, cases=settings({}, {"decimals": 1}), **_flat),
    elementwise("aten.trunc", None, forward=lambda op: op.self.trunc(), **_flat),
]
