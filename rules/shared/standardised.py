"""What layer, group, instance and RMS norm share: each group of E elements is x -> xhat = (x - mean) / s, or x / s.

s is sqrt(mean((x - mean)^2) + eps). With P = I - 1 1^T / E (RMS norm has no mean: P = I), the cotangent h of xhat,
its projection u = P h and a = <u, xhat> / E, the transposed Jacobian is (u - a xhat) / s, and the Hessian of <h, xhat>

    -(v xhat^T + xhat v^T + a E P) / (E s^2)    with v = u - 3/2 a xhat:

two outer products of opposite signs, and a multiple of a projection.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.rule import ZERO, Factor, Op, Residual, Shape, Tensor, called, covariance_root

from .simplex import positionwise


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

    def grouped(self, op: Op, value: Tensor, lead: int = 1) -> Tensor:
        """[N, *z] -> [N, *groups, E], or with lead=2 [N, K, *z] -> [N, K, *groups, E]."""
        target = (*self.groups(op), self.elements(op))
        if target == op.shape("input"):
            return value
        return value.reshape(*([-1] if lead == 1 else [value.shape[0], -1]), *target)

    def ungrouped(self, op: Op, columns: Tensor) -> Tensor:
        """[N, K, *groups, E] -> [N, K, *z]."""
        if (*self.groups(op), self.elements(op)) == op.shape("input"):
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
        return called("normalised", (error * self.per_group(op, op.rstd)).type_as(op.input))

    def centre(self, value: Tensor) -> Tensor:
        return value - value.mean(-1, True) if self.centred else value

    def jac_t(self, op: Op, columns: Tensor) -> Tensor:
        weight = self.scale(op)
        h = called("h", self.grouped(op, columns if weight is None else columns * weight, 2))
        xhat = self.normalised(op).unsqueeze(1)
        along = xhat * (h * xhat).mean(-1, True)
        return self.ungrouped(op, (self.centre(h) - along) * self.reciprocal(op).unsqueeze(1))

    def factor(self, op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Columns of each group alone, then block by block: the sum and the difference of xhat and v, and P's."""
        weight, xhat, inverse = self.scale(op), self.normalised(op), self.reciprocal(op)
        u = called("u", self.centre(self.grouped(op, gradient if weight is None else gradient * weight)))
        a = called("a", (u * xhat).mean(-1, True))
        (x_size, x_unit), (v_size, v_unit) = _polar(xhat), _polar(u - 1.5 * a * xhat)
        x_unit, v_unit = called("x_unit", x_unit), called("v_unit", v_unit)
        size = called("size", inverse * (x_size * v_size / (2 * self.elements(op))).sqrt())
        projection = (a.abs().sqrt() * inverse).unsqueeze(-1) * self.projection(op, a)
        outer = torch.stack([size * (x_unit + v_unit), size * (x_unit - v_unit)], -2)
        columns = torch.cat([called("outer", outer), called("projection", projection)], -2)
        plus = torch.ones_like(a)
        of_projection = plus.copysign(-a).expand(*[-1] * len(self.groups(op)), -1, self.rank(op))
        signs = torch.cat([-plus, plus, of_projection], -1)
        if self.groups(op):
            columns = positionwise(columns, self.groups(op)).movedim(2, -1)
            signs = signs.movedim(-1, 1).flatten(1)
        return {"input": self.ungrouped(op, columns)}, signs

    def projection(self, op: Op, like: Tensor) -> Tensor:
        """Rows whose Gram matrix is P: E - 1 of them, or all E."""
        length = self.elements(op)
        if not self.centred:
            return torch.diag(like.new_ones(length))
        return covariance_root(like.new_full([length], 1 / length)) * math.sqrt(length)

    def rank(self, op: Op) -> int:
        """The projection's."""
        return self.elements(op) - (1 if self.centred else 0)

    def count(self, op: Op) -> int:
        return (2 + self.rank(op)) * math.prod(self.groups(op))

    def residual(self, op: Op) -> Residual:
        if self.centred and self.elements(op) == 1:
            return ZERO
        return Factor(self.count, self.factor)


def _polar(value: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths along the last axis, and unit vectors (zeros where the length is zero)."""
    size = value.norm(2, [-1], True)
    return size, value / (size + (size == 0).type_as(size))
