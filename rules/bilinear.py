"""nn.Bilinear, y_o = x^T W_o z + b_o: the weight meets the products of both inputs.

Between the inputs stands C = sum_o g_o W_o, a cross block at each position, which is factored row by row (or column by
column, if there are fewer): sqrt(|C_i| / 2) at x_i and C_i / sqrt(2 |C_i|) at z, with both signs, in the inputs' units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Contraction, Factor, Noise, Op, Residual, Rule, Structure, Tensor
from hbpcompiler.rule.ranges import above_zero, lengths

from .shared.simplex import positionwise
from .shared.units import finite_unit


def positions(op: Op) -> tuple[int, ...]:
    return op.shape("output")[:-1]


def params(op: Op) -> Mapping[str, Contraction]:
    several = len(positions(op)) > 1

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        return columns.flatten(2, -2) if several else columns

    def products(op: Op) -> Tensor:
        pairs = (op.input1.unsqueeze(-1) * op.input2.unsqueeze(-2)).flatten(-2)
        return pairs.flatten(1, -2) if several else pairs

    if not positions(op):
        return {"weight": Contraction("nko,ni->nkoi", operand=products), "bias": Contraction("nko->nko")}
    return {
        "weight": Contraction("nkpo,npi->nkoi", columns_view, products),
        "bias": Contraction("nkpo->nko", columns_view),
    }


def first_jac_t(op: Op, columns: Tensor) -> Tensor:
    return torch.einsum("nk...o,n...j,oij->nk...i", columns, op.input2, op.weight)


def second_jac_t(op: Op, columns: Tensor) -> Tensor:
    return torch.einsum("nk...o,n...i,oij->nk...j", columns, op.input1, op.weight)


def inner(op: Op) -> int:
    """Rows or columns of the cross block."""
    return min(op.shape("input1")[-1], op.shape("input2")[-1])


def cross_block(op: Op, gradient: Tensor) -> tuple[tuple[str, str], Tensor, Tensor]:
    """The names of the inputs whose entries number the rows and the columns of C; its rows' sizes, and C over these."""
    names = ("input1", "input2")
    cross = torch.einsum("n...o,oij->n...ij", gradient, op.weight)
    if op.shape("input2")[-1] < op.shape("input1")[-1]:
        names, cross = ("input2", "input1"), cross.transpose(-1, -2)
    own, other = (getattr(op, name).abs().mean(-1, True).unsqueeze(-1) for name in names)
    unit = op.output.new_ones(1) if op.one_by_one else finite_unit(other / own)
    size = above_zero(lengths(cross) * (unit / 2)).sqrt()
    return names, size, cross / (2 * size)


def factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    names, size, met = cross_block(op, gradient)
    own = torch.diag_embed(size.squeeze(-1))
    columns = {
        names[0]: arranged(op, torch.cat([own, own], -2)),
        names[1]: arranged(op, torch.cat([met, -met], -2)),
    }
    plus = torch.ones_like(size.squeeze(-1))
    signs = torch.cat([plus, -plus], -1)
    return columns, signs.movedim(-1, 1).flatten(1) if positions(op) else signs


def drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    """Random sums of these columns, one sign for both of a row."""
    names, size, rows = cross_block(op, gradient)
    signs = noise(*op.shape(names[0]))
    own = signs * size.squeeze(-1).unsqueeze(1)
    met = (signs.unsqueeze(-2) @ rows.unsqueeze(1)).squeeze(-2)
    return {names[0]: torch.cat([own, own], 1), names[1]: torch.cat([met, -met], 1)}


def arranged(op: Op, columns: Tensor) -> Tensor:
    """[N, *positions, k, features] -> [N, k * positions, *positions, features]."""
    return positionwise(columns, positions(op)).movedim(2, -1) if positions(op) else columns


def residual(op: Op) -> Residual:
    both = op.varies("input1") and op.varies("input2")
    if not both:
        return ZERO
    return Factor(lambda op: 2 * inner(op) * math.prod(positions(op)), factor, drawn=drawn, own={})


BILINEAR = Rule(
    operations=["aten.bilinear"],
    forward=lambda op: F.bilinear(op.input1, op.input2, op.weight, op.bias),
    jac_t={"input1": first_jac_t, "input2": second_jac_t},
    params=params,
    residual=residual,
    formula="sum_o S_o W_o z to x, sum_o S_o W_o^T x to z;  residual: C = sum_o g_o W_o between x and z",
    structure=Structure.GENERAL,
    refuse=lambda op: None if op.has_samples("input1") and op.has_samples("input2") else "an input has no samples",
    cases=[
        Case({"input1": (*lead, 2), "input2": (*lead, second), "weight": (4, 2, second), **bias}, {},
             ("input1", "input2"), constant=constant)
        for lead in ((), (3,), (2, 2))
        for second, bias in ((3, {"bias": (4,)}), (1, {}))
        for constant in ((), ("input1",))
    ],
)
