"""What layer, group, instance and RMS norm share: each group of E elements is x -> xhat = (x - mean) / s, or x / s.

s is sqrt(mean((x - mean)^2) + eps). With P = I - 1 1^T / E (RMS norm has no mean: P = I), the cotangent h of xhat,
its projection u = P h and a = <u, xhat> / E, the transposed Jacobian is (u - a xhat) / s, and the Hessian of <h, xhat>

    -(v xhat^T + xhat v^T + a E P) / (E s^2)    with v = u - 3/2 a xhat:

two outer products of opposite signs, and a multiple of a projection.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import (
    ZERO,
    Factor,
    Noise,
    Op,
    Residual,
    Shape,
    Tensor,
    called,
    covariance_root,
    otherwise_called,
    standardised_back,
)

from .simplex import positionwise

_RESIDUAL = ("residual: -(v xhat^T + xhat v^T + a E P) / (E s^2),  u = P h, a = mean(u * xhat), v = u - 3/2 a xhat, "
             "E numbers have one mean")
CENTRED = ("(h - mean(h) - xhat mean(h * xhat)) / s,  h = S * weight, xhat = (x - mean) / s, s = sqrt(var + eps);  "
           f"{_RESIDUAL}, P = I - 1 1^T / E")
UNCENTRED = ("(h - xhat mean(h * xhat)) / s,  h = S * weight, xhat = x / s, s = sqrt(mean(x^2) + eps);  "
             f"{_RESIDUAL}, P = I")
"""What their rules say of columns and residuals."""


@dataclass(frozen=True)
class Standardised:
    """The derivatives of a norm whose forward saves `mean` (if centred) and `rstd`, one of each per group."""

    centred: bool
    layout: Callable[[Op], tuple[Shape, Shape]]
    """op -> (axes of groups, axes within a group) of a sample, which has the same order of elements."""
    scale: Callable[[Op], Any]
    """op -> the weight as it meets a sample, or None."""

    def groups(self, op: Op) -> Shape:
        return self.layout(op)[0]

    def elements(self, op: Op) -> int:
        return math.prod(self.layout(op)[1])

    def in_groups(self, op: Op) -> bool:
        """Whether a sample's shape is that of its groups already."""
        return (*self.groups(op), self.elements(op)) == op.shape("input")

    def grouped(self, op: Op, value: Tensor, lead: int = 1) -> Tensor:
        """[N, *z] -> [N, *groups, E], or with lead=2 [N, K, *z] -> [N, K, *groups, E]."""
        if self.in_groups(op):
            return value
        target = (*self.groups(op), self.elements(op))
        return value.reshape(*([-1] if lead == 1 else [value.shape[0], -1]), *target)

    def ungrouped(self, op: Op, columns: Tensor) -> Tensor:
        """[N, K, *groups, E] -> [N, K, *z]."""
        if self.in_groups(op):
            return columns
        return columns.reshape(columns.shape[0], -1, *op.shape("input"))

    def per_group(self, op: Op, value: Tensor) -> Tensor:
        """A saved statistic -> [N, *groups, 1]."""
        single = len(self.layout(op)[1]) == 1
        return value if single else value.reshape(-1, *self.groups(op), 1)

    def reciprocal(self, op: Op) -> Tensor:
        """1 / s, [N, *groups, 1], in the input's dtype (a half-precision norm may keep it in single precision)."""
        return self.per_group(op, op.rstd).type_as(op.input)

    def normalised(self, op: Op) -> Tensor:
        """xhat, [N, *groups, E]."""
        x = self.grouped(op, op.input)
        error = x - self.per_group(op, op.mean) if self.centred else x
        return otherwise_called("_normalised", (error * self.per_group(op, op.rstd)).type_as(op.input))

    def centre(self, value: Tensor) -> Tensor:
        return value - value.mean(-1, True) if self.centred else value

    def jac_t(self, op: Op, columns: Tensor) -> Tensor:
        weight = self.scale(op)
        xhat, inverse = self.normalised(op).unsqueeze(1), self.reciprocal(op).unsqueeze(1)
        if self.in_groups(op):
            found: Tensor = standardised_back(columns, xhat, inverse, self.centred, weight)
            return found
        h = self.grouped(op, columns if weight is None else columns * weight, 2)
        return self.ungrouped(op, standardised_back(h, xhat, inverse, self.centred))

    def parts(self, op: Op, gradient: Tensor) -> "Parts":
        """What the residual's columns are made of, for each group."""
        weight, xhat, inverse = self.scale(op), self.normalised(op), self.reciprocal(op)
        u = called("u", self.centre(self.grouped(op, gradient if weight is None else gradient * weight)))
        a = called("a", (u * xhat).mean(-1, True))
        v = otherwise_called("v", u - 1.5 * a * xhat)
        (x_size, x_unit), (v_size, v_unit) = _polar(xhat), _polar(v)
        size = called("size", inverse * (x_size * v_size / (2 * self.elements(op))).sqrt())
        return Parts(a, size, called("x_unit", x_unit), called("v_unit", v_unit), a.abs().sqrt() * inverse)

    def factor(self, op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Columns of each group alone, then block by block: the sum and the difference of xhat and v, and P's."""
        own = self.parts(op, gradient)
        projection = own.root.unsqueeze(-1) * self.projection(op, own.a)
        outer = torch.stack([own.size * (own.x_unit + own.v_unit), own.size * (own.x_unit - own.v_unit)], -2)
        columns = torch.cat([called("outer", outer), called("projection", projection)], -2)
        plus = otherwise_called("plus", torch.ones_like(own.a))
        of_projection = plus.copysign(-own.a).expand(*[-1] * len(self.groups(op)), -1, self.rank(op))
        signs = otherwise_called("signs", torch.cat([-plus, plus, of_projection], -1))
        if self.groups(op):
            columns = positionwise(columns, self.groups(op)).movedim(2, -1)
            signs = signs.movedim(-1, 1).flatten(1)
        return {"input": self.ungrouped(op, columns)}, signs

    def some(self, op: Op, gradient: Tensor, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The columns with these numbers [k], counted group by group; in a group as `factor` makes them."""
        each = 2 + self.rank(op)
        group, number = numbers // each, numbers % each
        own = self.parts(op, gradient).of_groups(self.groups(op)).at(group)
        is_first, is_outer = (number == 0).unsqueeze(-1).type_as(own.a), (number < 2).unsqueeze(-1).type_as(own.a)
        outer = own.size * (own.x_unit + (2 * is_first - 1) * own.v_unit)
        projection = own.root * self.rows(op, (number - 2).clamp(min=0), own.a)
        columns = is_outer * outer + (1 - is_outer) * projection
        signs = is_outer * (1 - 2 * is_first) + (1 - is_outer) * torch.ones_like(own.a).copysign(-own.a)
        if self.groups(op):
            place = F.one_hot(group, math.prod(self.groups(op))).type_as(columns).unsqueeze(-1)
            columns = (columns.unsqueeze(2) * place).unflatten(2, list(self.groups(op)))
        return {"input": self.ungrouped(op, columns)}, signs.squeeze(-1)

    def drawn(self, op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Random sums of the columns: those of P are random signs, projected."""
        own = self.parts(op, gradient)
        outer = noise(*self.groups(op), 1) * own.size.unsqueeze(1)
        x_unit, v_unit = own.x_unit.unsqueeze(1), own.v_unit.unsqueeze(1)
        projection = self.centre(noise(*self.groups(op), self.elements(op))) * own.root.unsqueeze(1)
        negative = (own.a > 0).type_as(own.a).unsqueeze(1)
        plus = outer * (x_unit - v_unit) + projection * (1 - negative)
        minus = outer * (x_unit + v_unit) + projection * negative
        return {"input": self.ungrouped(op, torch.cat([plus, minus], 1))}

    def projection(self, op: Op, like: Tensor) -> Tensor:
        """Rows whose Gram matrix is P: E - 1 of them, or all E."""
        length = self.elements(op)
        if not self.centred:
            return torch.diag(like.new_ones(length))
        return covariance_root(like.new_full([length], 1 / length)) * math.sqrt(length)

    def rows(self, op: Op, numbers: Tensor, like: Tensor) -> Tensor:
        """Rows [k, E] of such a matrix, by their numbers: of a unit matrix, or of Helmert's without the first."""
        if not self.centred:
            return F.one_hot(numbers, self.elements(op)).type_as(like)
        place = F.one_hot(numbers + 1, self.elements(op)).type_as(like)
        last = (numbers + 1).unsqueeze(-1).type_as(like)
        return (1 - place.cumsum(-1) - last * place) / (last * (last + 1)).sqrt()

    def rank(self, op: Op) -> int:
        """The projection's."""
        return self.elements(op) - (1 if self.centred else 0)

    def count(self, op: Op) -> int:
        return (2 + self.rank(op)) * math.prod(self.groups(op))

    def residual(self, op: Op) -> Residual:
        if self.centred and self.elements(op) == 1:
            return ZERO
        return Factor(self.count, self.factor, self.some, self.drawn)


@dataclass(frozen=True)
class Parts:
    """Of each group, [N, *groups, 1 or E]: a; sizes and directions of the outer products; P's scale."""

    a: Tensor
    size: Tensor
    x_unit: Tensor
    v_unit: Tensor
    root: Tensor

    def of_groups(self, groups: Shape) -> "Parts":
        """With one axis for all groups."""
        return self._each(lambda value: value.flatten(1, -2) if groups else value.unsqueeze(1))

    def at(self, group: Tensor) -> "Parts":
        """Those of the groups with these numbers, [N, k, 1 or E]."""
        return self._each(lambda value: value[:, group])

    def _each(self, made: Callable[[Tensor], Tensor]) -> "Parts":
        return Parts(*(made(getattr(self, field.name)) for field in fields(self)))


def _polar(value: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths along the last axis, and unit vectors (zeros where the length is zero)."""
    size = value.norm(2, [-1], True)
    return size, value / (size + (size == 0).type_as(size))
