"""Matrix products of two values: activations with activations (attention), or with a matrix that has no samples.

out = A B with A [*b, r, s] and B [*b, s, t]; batch axes b may be repeated, as torch does. Where both carry derivatives
the residual has a cross block for every s: g between column s of A and row s of B.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.rule import (
    ZERO,
    Case,
    Contraction,
    Factor,
    Noise,
    Op,
    Residual,
    Rule,
    Shape,
    Structure,
    Tensor,
    otherwise_called,
)
from hbpcompiler.rule.ranges import above_zero, lengths

from .shared.matrix_products import cross_columns, some_cross_columns, summed
from .shared.units import finite_unit


@dataclass(frozen=True)
class Product:
    """What the rules of matmul, bmm and mm say, whose second operand has this name."""

    second: str

    def forward(self, op: Op) -> Tensor:
        product: Tensor = op.self @ getattr(op, self.second)
        return product

    def lifted(self, op: Op, name: str) -> Tensor:
        """The operand as it meets columns."""
        value: Tensor = getattr(op, name)
        return value.unsqueeze(1) if op.has_samples(name) else value

    def matrix(self, op: Op, name: str) -> Shape:
        """The operand's shape or the result's; a vector, or a row of each sample, is a matrix of one row or column."""
        shape = op.shape(name)
        if name == "output":
            rows = (*shape[:-1], 1, *shape[-1:]) if len(op.shape("self")) == 1 and not self.is_vector(op) else shape
            ones = (1,) * (len(op.shape("self")) == 1) + (1,)
            return (*shape, *ones) if self.is_vector(op) else rows
        if len(shape) == 1:
            return (1, *shape) if name == "self" else (*shape, 1)
        return shape[1:] if self.stands_for_samples(op, name) else shape

    def stands_for_samples(self, op: Op, name: str) -> bool:
        """Whether the operand has no samples, but an axis of length one in their place."""
        shape = op.shape(name)
        return not op.has_samples(name) and len(shape) > max(len(op.shape("output")), 2) and shape[0] == 1

    def full(self, op: Op, name: str) -> Shape:
        """The operand's matrix with all batch axes of the result."""
        return (*self.matrix(op, "output")[:-2], *self.matrix(op, name)[-2:])

    def is_vector(self, op: Op) -> bool:
        return len(op.shape(self.second)) == 1 and not op.has_samples(self.second)

    def is_row(self, op: Op) -> bool:
        """Whether the first operand is a vector that has no samples."""
        return len(op.shape("self")) == 1 and not op.has_samples("self")

    # -- columns at each operand ----------------------------------------------------------------------------------

    def self_jac_t(self, op: Op, columns: Tensor) -> Tensor:
        if self.is_vector(op):
            return columns.unsqueeze(-1) * getattr(op, self.second)
        if self.is_row(op):
            pulled = columns.unsqueeze(-2) @ self.lifted(op, self.second).transpose(-1, -2)
            return summed(pulled, self.matrix(op, "self"), self.full(op, "self")).squeeze(-2)
        pulled = columns @ self.lifted(op, self.second).transpose(-1, -2)
        if len(op.shape("self")) < 2:
            return pulled
        return self.as_given(op, "self", summed(pulled, self.matrix(op, "self"), self.full(op, "self")))

    def second_jac_t(self, op: Op, columns: Tensor) -> Tensor:
        shape = op.shape(self.second)
        if self.is_row(op):
            return op.self.unsqueeze(-1) * columns.unsqueeze(-2)
        if op.has_samples(self.second) or len(shape) > 2:
            pulled = self.lifted(op, "self").transpose(-1, -2) @ columns
            found = summed(pulled, self.matrix(op, self.second), self.full(op, self.second))
            return self.as_given(op, self.second, found)
        weight = self.second_contraction(op)
        assert weight.operand is not None
        pulled = torch.einsum(weight.equation, weight.columns(op, columns), weight.operand(op))
        return pulled.squeeze(-1) if self.is_vector(op) else pulled

    # -- an operand that is a parameter ---------------------------------------------------------------------------

    def second_contraction(self, op: Op) -> Contraction:
        """B [s, t] or [s] without samples: as in a linear layer, all other axes of A are positions."""
        positions = len(op.shape("self")) - 1

        def columns_view(op: Op, columns: Tensor) -> Tensor:
            columns = columns.unsqueeze(-1) if self.is_vector(op) else columns
            return columns.flatten(2, -2) if positions > 1 else columns

        def operand(op: Op) -> Tensor:
            return op.self.flatten(1, -2) if positions > 1 else op.self

        return Contraction("nkpo,npi->nkio" if positions else "nko,ni->nkio", columns_view, operand)

    def first_contraction(self, op: Op) -> Contraction:
        """A [r, s] without samples: columns of B are positions."""
        return Contraction(
            "nkpo,npi->nkoi",
            lambda op, columns: columns.transpose(-1, -2).flatten(2, -2),
            lambda op: getattr(op, self.second).transpose(-1, -2).flatten(1, -2),
        )

    def params(self, op: Op) -> Mapping[str, Contraction]:
        found = {}
        if not op.has_samples("self") and len(op.shape("self")) == 2:
            found["self"] = self.first_contraction(op)
        if not op.has_samples(self.second) and len(op.shape(self.second)) <= 2:
            found[self.second] = self.second_contraction(op)
        return found

    # -- the cross block of two operands --------------------------------------------------------------------------

    def half(self, op: Op) -> int:
        *batch, rows, columns = self.matrix(op, "output")
        return math.prod(batch) * op.shape("self")[-1] * min(rows, columns)

    def factor(self, op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        g = self.turned(op, gradient)
        own, met = cross_columns(g, op.shape("self")[-1], self.unit(op))
        half = self.half(op)
        name, own, other, met = self.arranged(op, own, met, (-1, half))
        plus = otherwise_called("plus", torch.ones_like(g.flatten(1)[:, :1]).expand(-1, half))
        return {name: torch.cat([own, own], 1), other: torch.cat([met, -met], 1)}, torch.cat([plus, -plus], 1)

    def some(self, op: Op, gradient: Tensor, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Those of `factor`'s columns with these numbers [k]."""
        *batch, rows, columns = self.matrix(op, "output")
        g = self.turned(op, gradient)
        number, inner = numbers % self.half(op), op.shape("self")[-1]
        own, met = some_cross_columns(g, math.prod(batch), min(rows, columns), inner, number, self.unit(op))
        name, own, other, met = self.arranged(op, own, met, (own.shape[0], -1))
        sign = (1 - 2 * (numbers // self.half(op))).type_as(g)
        signs = torch.ones_like(g.flatten(1)[:, :1]) * sign
        for _ in op.shape(other):
            sign = sign.unsqueeze(-1)
        return {name: own, other: met * sign}, signs

    def drawn(self, op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Random sums of both halves, with one sign for a column and its counterpart: their products with themselves
        are gone."""
        *batch, rows, columns = self.matrix(op, "output")
        g = self.turned(op, gradient)
        size = above_zero(lengths(g) * (self.unit(op) / 2)).sqrt()
        signs = noise(math.prod(batch), min(rows, columns), op.shape("self")[-1])
        met = signs.transpose(-1, -2) @ (g / (2 * size)).unsqueeze(1)
        name, own, other, met = self.arranged(op, signs * size.unsqueeze(1), met, (g.shape[0], -1))
        return {name: torch.cat([own, own], 1), other: torch.cat([met, -met], 1)}

    def is_narrow(self, op: Op) -> bool:
        """Whether the roles of A and B are changed: out^T = B^T A^T."""
        *_, rows, columns = self.matrix(op, "output")
        return columns < rows

    def turned(self, op: Op, gradient: Tensor) -> Tensor:
        *batch, rows, columns = self.matrix(op, "output")
        g = gradient.reshape(-1, math.prod(batch), rows, columns)
        return g.transpose(-1, -2) if self.is_narrow(op) else g

    def unit(self, op: Op) -> Tensor:
        """Of each row of the operand that numbers the columns, [N, b, r, 1] (see `square_unit`)."""
        if op.one_by_one:
            ones: Tensor = op.output.new_ones([1, 1, 1, 1])
            return ones
        name, other, summed = (self.second, "self", -2) if self.is_narrow(op) else ("self", self.second, -1)
        ratio = self.matrices(op, other).abs().mean([-2, -1], True) / self.matrices(op, name).abs().mean(summed, True)
        ratio = ratio.transpose(-1, -2) if self.is_narrow(op) else ratio
        unit = finite_unit(ratio if op.has_samples("self") and op.has_samples(self.second) else ratio.sqrt())
        *batch, rows, columns = self.matrix(op, "output")
        return unit.reshape(-1, math.prod(batch), min(rows, columns), 1)

    def matrices(self, op: Op, name: str) -> Tensor:
        """The operand as [N, *batch, rows, columns], with lengths of one where it lacks axes."""
        value: Tensor = getattr(op, name)
        lead = 1 if op.has_samples(name) or self.stands_for_samples(op, name) else 0
        if len(op.shape(name)) == 1:
            value = value.unsqueeze(-2 if name == "self" else -1)
        for _ in range(len(self.matrix(op, "output")) - len(self.matrix(op, name))):
            value = value.unsqueeze(lead)
        return value if lead else value.unsqueeze(0)

    def arranged(self, op: Op, own: Tensor, met: Tensor, lead: tuple[Any, Any]) -> tuple[str, Tensor, str, Tensor]:
        """Both halves of columns at the operands, with these lengths of the sample and the column axis."""
        batch, narrow = self.matrix(op, "output")[:-2], self.is_narrow(op)
        name, other = (self.second, "self") if narrow else ("self", self.second)
        shape, others = self.full(op, name), self.full(op, other)
        if narrow:
            own = own.reshape(*lead, *batch, *shape[:-3:-1]).transpose(-1, -2)
            met = met.transpose(-1, -2)
        own = self.as_given(op, name, summed(own.reshape(*lead, *shape), self.matrix(op, name), shape))
        met = self.as_given(op, other, summed(met.reshape(*lead, *others), self.matrix(op, other), others))
        return name, otherwise_called("own_half", own), other, otherwise_called("other_half", met)

    def as_given(self, op: Op, name: str, columns: Tensor) -> Tensor:
        """Columns at the operand's matrix as columns at the operand."""
        if len(op.shape(name)) != 1:
            return columns.unsqueeze(2) if self.stands_for_samples(op, name) else columns
        return columns.squeeze(-2 if name == "self" else -1)

    def residual(self, op: Op) -> Residual:
        both = op.varies("self") and op.varies(self.second)
        return Factor(lambda op: 2 * self.half(op), self.factor, self.some, self.drawn, own={}) if both else ZERO

    # -- what the planner may know --------------------------------------------------------------------------------

    def structure(self, op: Op) -> Structure:
        names = [name for name in ("self", self.second) if op.varies(name)]
        others = {"self": self.second, self.second: "self"}
        fixed = len(names) == 1 and not op.has_samples(others[names[0]])
        return Structure.CONSTANT if fixed else Structure.GENERAL

    def refuse(self, op: Op) -> str | None:
        sampled = [name for name in ("self", self.second) if op.has_samples(name)]
        axes = [len(op.shape(name)) for name in sampled]
        if sampled != ["self"] and min(axes, default=2) < 2:
            return "the sample axis would be one of the matrix; use unsqueeze to make a matrix of every sample"
        longest = max(len(op.shape("output")), 2)
        if any(len(self.matrix(op, name)) > longest for name in ("self", self.second) if not op.has_samples(name)):
            return "a matrix without samples has a batch axis where the other has its sample axis; drop that axis"
        if any(length < len(op.shape("output")) for length in axes if length > 1):
            return "an operand has fewer axes than the other, so that its sample axis meets another axis"
        return None


def product(operation: str, second: str, cases: list[Case]) -> Rule:
    """The rule of matmul, bmm or mm, whose second operand has this name."""
    of = Product(second)
    return Rule(
        operations=[operation],
        forward=of.forward,
        jac_t={"self": of.self_jac_t, second: of.second_jac_t},
        params=of.params,
        residual=of.residual,
        formula="S B^T to A, A^T S to B;  residual: g between A and B",
        structure=of.structure,
        refuse=of.refuse,
        merged=True,
        cases=cases,
    )


BOTH = ("self", "other")
MATMUL = product(
    "aten.matmul",
    "other",
    [
        Case({"self": (2, 3), "other": (3, 4)}, {}, BOTH),
        Case({"self": (4, 3), "other": (3, 2)}, {}, BOTH),
        Case({"self": (2, 2, 3), "other": (2, 3, 2)}, {}, BOTH),
        Case({"self": (2, 3, 2), "other": (1, 2, 2)}, {}, BOTH),
        Case({"self": (1, 3, 2), "other": (2, 2, 2)}, {}, BOTH),
        Case({"self": (2, 3), "other": (3, 4)}, {}, BOTH, constant=("other",)),
        *[
            Case({"self": shape, "other": other}, {}, ("self",), constant=constant)
            for shape in ((3,), (2, 3), (2, 2, 3))
            for other in ((3, 4), (3,))
            for constant in (("other",), ("self",))
        ],
        Case({"self": (2, 2, 3), "other": (2, 3, 2)}, {}, ("self",), constant=("other",)),
        Case({"self": (2, 3), "other": (3, 4)}, {}, ("other",), constant=("self",)),
        Case({"self": (2, 3), "other": (2, 3, 4)}, {}, ("other",), constant=("self",)),
        Case({"self": (2, 3), "other": (3, 4)}, {}, ("other",), constant=("other",)),
        *[Case({"self": shape, "other": other}, {}, ("self",)) for shape in ((3,), (2, 3), (2, 2, 3))
          for other in ((3, 2), (3,))],
        Case({"self": (2, 3), "other": (2, 3, 2)}, {}, ("other",)),
        *[Case({"self": (2, 2, 3), "other": (1, 2, 3, 2)}, {}, ("self",), constant=constant)
          for constant in ((), ("self",), ("other",))],
        Case({"self": (1, 1, 2, 3), "other": (2, 3, 2)}, {}, ("other",)),
        *[Case({"self": (3,), "other": other}, {}, ("other",), constant=constant)
          for other in ((3, 2), (2, 3, 2)) for constant in ((), ("self",), ("other",))],
    ],
)
BMM = product("aten.bmm", "mat2", [Case({"self": (2, 3), "mat2": (3, 4)}, {}, ("self", "mat2"))])
MM = product(
    "aten.mm",
    "mat2",
    [Case({"self": (3,), "mat2": (3, 4)}, {}, ("self",), constant=names) for names in (("self",), ("mat2",), ())],
)
