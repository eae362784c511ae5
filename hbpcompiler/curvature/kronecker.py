"""Blocks of Kronecker factors, and of the eigenvectors of some."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hbpcompiler.curvature.block import EXACT, PI, Block, Times
from hbpcompiler.curvature.inverses import reciprocals
from hbpcompiler.curvature.place import Matrix
from hbpcompiler.curvature.symmetric import Symmetric

MOST_ROUNDING = 10.0
"""Times eps, squared, and the largest: a square of which no digit is right, as where a factor has eigenvalue 0."""


class Kronecker(Block):
    """B (x) A over [outputs, inputs]: a vector V meets it as B V A.

    `A` [inputs, inputs] and `B` [outputs, outputs]; for grouped convolutions a pair for each group, [groups, ., .].

    Damping with split="exact" adds it to the eigenvalues b_o a_i of the product. With split="pi" it is shared by the
    factors, (B + sqrt(damping) / pi) (x) (A + pi sqrt(damping)), with

        pi = sqrt((tr A / inputs) / (tr B / outputs)),

    by the trace norm (Martens & Grosse 2015, section 6.3; Dangel, Kunstner & Hennig 2020, equations 28 and 29). The
    product is then B (x) A + damping and two terms more, and its inverse is a Kronecker product again. For indefinite
    factors the trace is that of the absolute value; where a factor is zero, pi is 1.
    """

    place: Matrix

    def __init__(self, place: Matrix, quantity: str, inputs: Symmetric, outputs: Symmetric) -> None:
        super().__init__(place, quantity)
        self.inputs = inputs
        self.outputs = outputs

    @property
    def A(self) -> Tensor:  # noqa: N802  # the factors' name everywhere
        return self.inputs.matrix

    @property
    def B(self) -> Tensor:  # noqa: N802  # the factors' name everywhere
        return self.outputs.matrix

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"A": self.A, "B": self.B}

    @property
    def symmetric_matrices(self) -> tuple[Symmetric, ...]:
        return self.inputs, self.outputs

    @property
    def eigenvalues(self) -> Tensor:
        return self._outer(self.outputs.eigen.values, self.inputs.eigen.values)

    @property
    def is_singular(self) -> bool:
        return self.inputs.is_singular or self.outputs.is_singular

    @property
    def pi(self) -> Tensor:
        """How much of the damping's root the factor A takes, [groups]."""
        outputs, inputs = (factor.eigen.values.abs().mean(-1) for factor in (self.outputs, self.inputs))
        return _pi(outputs, inputs).reshape(self.place.groups)

    def damped(self, damping: float, split: str) -> Tensor:
        if split == EXACT:
            return self.eigenvalues + damping
        outputs, inputs = self._damped_factors(damping)
        return self._outer(outputs, inputs)

    def needed(self, split: str) -> float:
        if split == EXACT:
            return super().needed(split)
        below_inputs = -self.inputs.eigen.values.min(-1).values.clamp(max=0) / self.pi
        below_outputs = -self.outputs.eigen.values.min(-1).values.clamp(max=0) * self.pi
        return torch.maximum(below_inputs, below_outputs).square().max().item()

    def obstacle(self, damping: float, split: str, invertible: bool) -> str:
        if split == EXACT or not 0 < self.needed(split) >= damping:
            return super().obstacle(damping, split, invertible)
        factors = {"A": self.inputs.eigen.values, "B": self.outputs.eigen.values}
        found = [f"{name} has eigenvalues from {values.min().item():.3g} to {values.max().item():.3g}"
                 for name, values in factors.items() if values.min() < 0]
        return (f"{self.title} is indefinite, or its factors, which share the damping, are: {' and '.join(found)}; "
                f"a damping above {self.needed(split):.3g} would do")

    def product(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        return times(times(self.B, vectors), self.A)

    def turned(self, vectors: Tensor) -> Tensor:
        return self.outputs.eigen.vectors.mT @ vectors.double() @ self.inputs.eigen.vectors

    def turned_back(self, vectors: Tensor) -> Tensor:
        return self.outputs.eigen.vectors @ vectors @ self.inputs.eigen.vectors.mT

    def power(self, exponent: float, damping: float, split: str) -> Block:
        """A Kronecker product again, but for an exact damping, or for two factors that are negative."""
        quantity = f"power of {self.quantity}"
        negative = any(bool((factor.eigen.values < 0).any()) for factor in (self.inputs, self.outputs))
        if split == EXACT and (damping != 0 or negative):
            values = (self.damped(damping, split) ** exponent).to(self.dtype)
            of_inputs, of_outputs = self.inputs.eigen.vectors.to(self.dtype), self.outputs.eigen.vectors.to(self.dtype)
            return EigenKronecker(self.place, quantity, of_inputs, of_outputs, values, 0.0)
        damped = self._damped_factors(damping)
        outputs, inputs = (factor.with_eigenvalues(values**exponent, f"a factor of {self.place.title} ({quantity})")
                           for factor, values in zip((self.outputs, self.inputs), damped, strict=True))
        return Kronecker(self.place, quantity, inputs, outputs)

    def quick_inverse(self, damping: float, split: str, into: Mapping[str, Tensor]) -> Kronecker | None:
        if split == EXACT or self.inputs.eigenvectors_known or self.outputs.eigenvectors_known:
            return None
        means = [factor.diagonal(dim1=-2, dim2=-1).double().mean(-1) for factor in (self.B, self.A)]
        pi = _pi(*means)
        title = f"a factor of {self.place.title} (inverse of {self.quantity})"
        outputs = self.outputs.inverse_shifted(damping**0.5 / pi, title, into.get("B"))
        inputs = None if outputs is None else self.inputs.inverse_shifted(damping**0.5 * pi, title, into.get("A"))
        if outputs is None or inputs is None:
            return None
        return Kronecker(self.place, f"inverse of {self.quantity}", inputs, outputs)

    def trace(self) -> Tensor:
        traces = (factor.diagonal(dim1=-2, dim2=-1).double().sum(-1) for factor in (self.A, self.B))
        return torch.mul(*traces).sum()

    def diagonal(self) -> Tensor:
        return self._outer(self.B.diagonal(dim1=-2, dim2=-1), self.A.diagonal(dim1=-2, dim2=-1))

    def scaled(self, factor: float) -> Kronecker:
        return Kronecker(self.place, self.quantity, self.inputs, self.outputs.scaled(factor))

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Kronecker:
        return Kronecker(self.place, self.quantity, self.inputs.to(device, dtype), self.outputs.to(device, dtype))

    def _damped_factors(self, damping: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues of B + sqrt(damping) / pi and of A + pi sqrt(damping)."""
        pi = self.pi if self.A.dim() == 3 else self.pi.squeeze(0)
        gamma = damping**0.5
        return (self.outputs.eigen.values + gamma / pi.unsqueeze(-1),
                self.inputs.eigen.values + gamma * pi.unsqueeze(-1))

    def _outer(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """[groups, outputs, inputs]"""
        product = outputs.unsqueeze(-1) * inputs.unsqueeze(-2)
        return product.reshape(self.place.groups, self.place.outputs, self.place.inputs)


def _pi(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Of the means of both factors' absolute eigenvalues."""
    either_zero = (inputs == 0) | (outputs == 0)
    return (inputs / outputs.masked_fill(either_zero, 1.0)).sqrt().masked_fill(either_zero, 1.0)


class EigenKronecker(Block):
    """(B (x) A) diag(`eigenvalues`) (B (x) A)^T: eigenvectors `A` and `B`, as columns, and an eigenvalue for each pair.

    What ekfac is (George et al. 2018), and what functions of a damped Kronecker product are. Without `A` (a bias) B has
    the eigenvectors of the whole block. The damping is added to the eigenvalues; there are no factors to share it.
    """

    place: Matrix

    def __init__(self, place: Matrix, quantity: str, inputs: Tensor | None, outputs: Tensor, eigenvalues: Tensor,
                 eps: float) -> None:
        super().__init__(place, quantity)
        self.A = inputs
        self.B = outputs
        self.values = eigenvalues.reshape(place.groups, place.outputs, place.inputs)
        self.eps = eps

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        vectors = {"B": self.B} if self.A is None else {"A": self.A, "B": self.B}
        return {**vectors, "values": self.values}

    @property
    def eigenvalues(self) -> Tensor:
        values = self.values.double()
        below = (values < 0) & (values >= -MOST_ROUNDING * self.eps * values.abs().max())
        return values.masked_fill(below, 0.0)

    @property
    def is_singular(self) -> bool:
        values = self.eigenvalues
        return bool((values <= (MOST_ROUNDING * self.eps) ** 2 * values.max()).any())

    def obstacle(self, damping: float, split: str, invertible: bool) -> str:
        if split == PI and damping != 0:
            return f"{self.title} has eigenvectors and no factors that could share the damping; take split='exact'"
        return super().obstacle(damping, split, invertible)

    def product(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        return self._turned_back(self.values * self._turned(vectors, times), times)

    def turned(self, vectors: Tensor) -> Tensor:
        return self._turned(vectors.double())

    def turned_back(self, vectors: Tensor) -> Tensor:
        return self._turned_back(vectors)

    def power(self, exponent: float, damping: float, split: str) -> EigenKronecker:
        values = (self.damped(damping, split) ** exponent).to(self.dtype)
        return EigenKronecker(self.place, f"power of {self.quantity}", self.A, self.B, values, 0.0)

    def quick_inverse(self, damping: float, split: str, into: Mapping[str, Tensor]) -> EigenKronecker | None:
        rounding = MOST_ROUNDING * self.eps
        values = reciprocals(self.values, damping, rounding, into.get("values")) if split == EXACT else None
        return None if values is None else EigenKronecker(self.place, f"power of {self.quantity}", self.A, self.B,
                                                          values, 0.0)

    def trace(self) -> Tensor:
        return self.values.double().sum()

    def diagonal(self) -> Tensor:
        if self.A is None:
            return self.B.square() @ self.values
        return self.B.square() @ self.values @ self.A.square().mT

    def scaled(self, factor: float) -> EigenKronecker:
        return EigenKronecker(self.place, self.quantity, self.A, self.B, self.values * factor, self.eps)

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> EigenKronecker:
        inputs = None if self.A is None else self.A.to(device=device, dtype=dtype)
        outputs, values = (part.to(device=device, dtype=dtype) for part in (self.B, self.values))
        eps = self.eps if values.dtype == self.dtype else max(self.eps, torch.finfo(values.dtype).eps)
        return EigenKronecker(self.place, self.quantity, inputs, outputs, values, eps)

    def _turned(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        seen = times(self.B.to(vectors.dtype).mT, vectors)
        return seen if self.A is None else times(seen, self.A.to(vectors.dtype))

    def _turned_back(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        seen = times(self.B.to(vectors.dtype), vectors)
        return seen if self.A is None else times(seen, self.A.to(vectors.dtype).mT)
