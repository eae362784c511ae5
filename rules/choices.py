"""Operations that choose: clamp, the larger or smaller of two, where and masked_fill, triangles of a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy
import torch

from hbpcompiler.elementwise import Piecewise, attribute, elementwise, settings, x
from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor, masked, passed, times_slope

from .shared.aligned import lifted, misaligned, other_than, unbroadcast, varying
from .shared.binary import Look, binary, operands

# -- within limits: at a limit itself as much of the gradient passes as this torch lets through -----------------------


def slope_at_limit(of_tensor: bool) -> float:
    """torch's: 1 before torch 2.14; since then 0, and a half where tensors limit."""
    with torch.inference_mode(False), torch.enable_grad():
        point = torch.zeros(1, requires_grad=True, device="cpu")
        limited = point.clamp(min=torch.zeros_like(point)) if of_tensor else point.clamp(min=0)
        (slope,) = torch.autograd.grad(limited, point)
    return float(slope)


OPEN = slope_at_limit(of_tensor=False) == 1
"""Whether a limit itself counts as inside."""
AT_TENSOR = slope_at_limit(of_tensor=True)


def limits(op: Op) -> list[sympy.Symbol | None]:
    """The lower and the upper one, where there are such."""
    return [None if getattr(op, name, None) is None else attribute(name) for name in ("min", "max")]


def crossed(op: Op) -> bool:
    """Whether the lower limit is above the upper one, which then counts."""
    low, high = getattr(op, "min", None), getattr(op, "max", None)
    return isinstance(low, int | float) and isinstance(high, int | float) and low > high


def inside(op: Op) -> sympy.Expr:
    low, high = limits(op)
    above = sympy.true if low is None else x >= low if OPEN else x > low
    below = sympy.true if high is None else x <= high if OPEN else x < high
    return Piecewise((1, above & below), (0, True))


def clamped(op: Op) -> sympy.Expr:
    low, high = limits(op)
    if crossed(op):
        return high
    pieces = [] if low is None else [(low, x < low if OPEN else x <= low)]
    pieces += [] if high is None else [(high, x > high if OPEN else x >= high)]
    return Piecewise(*pieces, (x, True))


def clamp_refused(op: Op) -> str | None:
    return "its limits are tensors; use torch.maximum and torch.minimum" if op.has("min") or op.has("max") else None


CLAMP = [
    replace(
        elementwise(
            name,
            clamped,
            first=inside,
            second=sympy.Integer(0),
            forward=lambda op: op.self.clamp(getattr(op, "min", None), getattr(op, "max", None)),
            cases=settings(*given),
        ),
        refuse=clamp_refused,
    )
    for name, given in (
        ("aten.clamp", ({"min": -0.5, "max": 0.7}, {"min": 0.1}, {"max": 0}, {"min": 0.7, "max": -0.5})),
        ("aten.clamp_min", ({"min": 0.1},)),
        ("aten.clamp_max", ({"max": 0.1},)),
    )
]


def _clamp_to(operation: str, name: str) -> Rule:
    """clamp_min and clamp_max with a constant tensor as the limit."""

    def within(op: Op) -> Tensor:
        limit = getattr(op, name)
        reached = (op.self >= limit if name == "min" else op.self <= limit).type_as(op.self)
        if AT_TENSOR == 1:
            return reached
        beyond = (op.self > limit if name == "min" else op.self < limit).type_as(op.self)
        return (reached + beyond) / 2

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        slope = within(op)
        return times_slope(columns, slope, slope if AT_TENSOR == 1 else slope != 0)

    def refuse(op: Op) -> str | None:
        if op.varies(name) or op.shape("self") != op.shape("output"):
            return "its limit is trained or larger than its input; use torch.maximum or torch.minimum"
        return misaligned(op, (name,))

    return Rule(
        operations=[operation],
        forward=lambda op: op.self.clamp(**{name: getattr(op, name)}),
        jac_t={"self": jac_t},
        residual=ZERO,
        formula="S within the limit, 0 beyond",
        structure=Structure.SELECTION,
        refuse=refuse,
        cases=[
            Case({"self": (4, 3), name: (3,)}, {}, ("self",)),
            Case({"self": (4,), name: (4,)}, {}, ("self", name)),
        ],
    )


CLAMP_TO = [_clamp_to("aten.clamp_min.Tensor", "min"), _clamp_to("aten.clamp_max.Tensor", "max")]

# -- the larger or smaller of two: equals share the gradient, and NaN is neither smaller nor larger --------------------


def maximum_share(op: Op, name: str, look: Look) -> Tensor:
    mine, other = look(name), look(other_than(name))
    return ((~(mine <= other)).type_as(op.output) + (~(mine < other)).type_as(op.output)) / 2


def minimum_share(op: Op, name: str, look: Look) -> Tensor:
    mine, other = look(name), look(other_than(name))
    return ((~(mine >= other)).type_as(op.output) + (~(mine > other)).type_as(op.output)) / 2


def chosen(operations: list[str], forward: Callable[[Op], Tensor], share: Callable[[Op, str, Look], Tensor],
           formula: str) -> Rule:
    """The rule from each operand's share of the cotangent: 0, a half or 1."""

    def pull(op: Op, name: str, cotangents: Tensor, look: Look) -> Tensor:
        own = share(op, name, look)
        return passed(cotangents * own, own)

    def derivative(op: Op) -> Tensor:
        own = share(op, varying(op, ("self", "other"))[0], lambda operand: getattr(op, operand))
        return masked(own, own != 0)

    return replace(binary(operations, forward, pull, ZERO, operands(), formula=formula), derivative=derivative)


MAXIMUM = chosen(
    ["aten.maximum", "aten.max.other"],
    lambda op: torch.maximum(op.self, op.other),
    maximum_share,
    "S to the larger one, half to each of equals",
)
MINIMUM = chosen(
    ["aten.minimum", "aten.min.other"],
    lambda op: torch.minimum(op.self, op.other),
    minimum_share,
    "S to the smaller one, half to each of equals",
)

# -- by a mask -------------------------------------------------------------------------------------------------------


def _mask(shape: Sequence[int]) -> Tensor:
    return torch.rand(tuple(shape)) < 0.5


def where_self(op: Op, columns: Tensor) -> Tensor:
    return unbroadcast(op, "self", torch.where(lifted(op, "condition"), columns, 0))


def where_other(op: Op, columns: Tensor) -> Tensor:
    return unbroadcast(op, "other", torch.where(lifted(op, "condition"), 0, columns))


def where_cases() -> list[Case]:
    cases = []
    for condition in ((2, 3), (3,), (1, 2, 1)):
        for batched in (("self", "other"), ("self",), ("other",), ("self", "other", "condition")):
            if "condition" not in batched or condition == (2, 3):
                shapes = {"condition": condition, "self": (2, 3), "other": (2, 3)}
                cases.append(Case(shapes, {}, batched, make={"condition": _mask}))
    given = {"condition": (2, 3), "self": (2, 3)}
    cases.append(Case(given, {"other": 0.5}, ("condition", "self"), make={"condition": _mask}))
    given = {"condition": (2, 3), "other": (2, 1)}
    cases.append(Case(given, {"self": 0.5}, ("condition", "other"), make={"condition": _mask}))
    return cases


WHERE = Rule(
    operations=["aten.where"],
    forward=lambda op: torch.where(op.condition, op.self, op.other),
    jac_t={"self": where_self, "other": where_other},
    residual=ZERO,
    formula="S where it was chosen, 0 elsewhere",
    structure=Structure.SELECTION,
    refuse=lambda op: misaligned(op, ("condition", "self", "other")),
    cases=where_cases(),
)


def masked_fill_refused(op: Op) -> str | None:
    if op.shape("self") != op.shape("output") or op.varies("value"):
        return "it broadcasts its input or fills in a trained value; use torch.where"
    return misaligned(op, ("mask",))


MASKED_FILL = Rule(
    operations=["aten.masked_fill"],
    forward=lambda op: op.self.masked_fill(op.mask, op.value),
    jac_t={"self": lambda op, columns: columns.masked_fill(lifted(op, "mask"), 0)},
    residual=ZERO,
    formula="S where nothing was filled in, 0 elsewhere",
    structure=Structure.SELECTION,
    refuse=masked_fill_refused,
    cases=[
        Case({"self": (2, 3), "mask": shape}, {"value": -7.0}, batched, make={"mask": _mask})
        for shape, batched in (((3,), ("self",)), ((2, 3), ("self", "mask")), ((1, 3), ("self", "mask")))
    ],
)

# -- triangles -------------------------------------------------------------------------------------------------------


def _triangle(name: str) -> Rule:
    def pulled(op: Op, columns: Tensor) -> Tensor:
        return columns.tril(op.diagonal) if name == "tril" else columns.triu(op.diagonal)

    return Rule(
        operations=[f"aten.{name}"],
        forward=lambda op: op.self.tril(op.diagonal) if name == "tril" else op.self.triu(op.diagonal),
        jac_t={"self": pulled},
        residual=ZERO,
        formula="S in the triangle, 0 elsewhere",
        structure=Structure.SELECTION,
        refuse=lambda op: "its matrix has the sample axis as one of its two" if len(op.shape("self")) < 2 else None,
        cases=[Case({"self": (3, 4)}), Case({"self": (2, 3, 3)}, {"diagonal": -1})],
    )


TRIANGLES = [_triangle("tril"), _triangle("triu")]
