"""Operations that let no derivative through: detach, and constants or draws of the shape of another value."""

from __future__ import annotations

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor


def jac_t(op: Op, columns: Tensor) -> Tensor:
    return columns.new_zeros(1).expand(columns.shape[0], columns.shape[1], *op.shape("self"))


def stopping(operation: str, **attributes: float) -> Rule:
    return Rule(
        operations=[operation],
        jac_t={"self": jac_t},
        residual=ZERO,
        structure=Structure.SELECTION,
        passes="nothing",
        cases=[Case({"self": (2, 3)}, attributes), Case({"self": ()}, attributes)],
    )


CONSTANTS = [
    stopping("aten.detach"),
    stopping("aten.zeros_like"),
    stopping("aten.ones_like"),
    stopping("aten.full_like", fill_value=1.5),
    stopping("aten.rand_like"),
    stopping("aten.randn_like"),
    stopping("aten.fill.Scalar", value=1.5),
]
