"""Blocks that are a diagonal or a whole matrix."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hbpcompiler.curvature.block import Block, Times
from hbpcompiler.curvature.inverses import reciprocals
from hbpcompiler.curvature.place import Place
from hbpcompiler.curvature.symmetric import ROUNDING, Symmetric


class Diagonal(Block):
    """Entries on a diagonal, `values` [n]: each is an eigenvalue.

    An entry's rounding error is relative to itself: positive ones are never taken for zero, and negative ones only
    where they are within rounding of the largest.
    """

    def __init__(self, place: Place, quantity: str, values: Tensor, eps: float) -> None:
        super().__init__(place, quantity)
        self.values = values
        self.eps = eps

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"values": self.values}

    @property
    def eigenvalues(self) -> Tensor:
        values = self.values.double()
        below = (values < 0) & (values >= -ROUNDING * self.eps * values.abs().max())
        return values.masked_fill(below, 0.0)

    @property
    def is_singular(self) -> bool:
        return bool((self.eigenvalues == 0).any())

    def product(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        return vectors * self.values

    def turned(self, vectors: Tensor) -> Tensor:
        return vectors.double()

    def turned_back(self, vectors: Tensor) -> Tensor:
        return vectors

    def power(self, exponent: float, damping: float, split: str) -> Diagonal:
        values = self.damped(damping, split) ** exponent
        return Diagonal(self.place, f"power of {self.quantity}", values.to(self.dtype), 0.0)

    def quick_inverse(self, damping: float, split: str, into: Mapping[str, Tensor]) -> Diagonal | None:
        values = reciprocals(self.values, damping, ROUNDING * self.eps, into.get("values"))
        return None if values is None else Diagonal(self.place, f"power of {self.quantity}", values, 0.0)

    def trace(self) -> Tensor:
        return self.values.double().sum()

    def diagonal(self) -> Tensor:
        return self.values

    def scaled(self, factor: float) -> Diagonal:
        return Diagonal(self.place, self.quantity, self.values * factor, self.eps)

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Diagonal:
        values = self.values.to(device=device, dtype=dtype)
        eps = self.eps if values.dtype == self.dtype else max(self.eps, torch.finfo(values.dtype).eps)
        return Diagonal(self.place, self.quantity, values, eps)


class Dense(Block):
    """A whole symmetric matrix, `matrix` [n, n]."""

    def __init__(self, place: Place, quantity: str, matrix: Symmetric) -> None:
        super().__init__(place, quantity)
        self.symmetric = matrix

    @property
    def matrix(self) -> Tensor:
        return self.symmetric.matrix

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"matrix": self.matrix}

    @property
    def symmetric_matrices(self) -> tuple[Symmetric, ...]:
        return (self.symmetric,)

    @property
    def eigenvalues(self) -> Tensor:
        return self.symmetric.eigen.values

    @property
    def is_singular(self) -> bool:
        return self.symmetric.is_singular

    def product(self, vectors: Tensor, times: Times = torch.matmul) -> Tensor:
        return times(vectors, self.matrix)

    def turned(self, vectors: Tensor) -> Tensor:
        return vectors.double() @ self.symmetric.eigen.vectors

    def turned_back(self, vectors: Tensor) -> Tensor:
        return vectors @ self.symmetric.eigen.vectors.mT

    def power(self, exponent: float, damping: float, split: str) -> Dense:
        quantity = f"power of {self.quantity}"
        values = self.damped(damping, split) ** exponent
        return Dense(self.place, quantity, self.symmetric.with_eigenvalues(values, f"{self.place.title} ({quantity})"))

    def quick_inverse(self, damping: float, split: str, into: Mapping[str, Tensor]) -> Dense | None:
        if self.symmetric.eigenvectors_known:
            return None
        shift = torch.tensor(damping, dtype=torch.float64, device=self.device)
        quantity = f"inverse of {self.quantity}"
        found = self.symmetric.inverse_shifted(shift, f"{self.place.title} ({quantity})", into.get("matrix"))
        return None if found is None else Dense(self.place, quantity, found)

    def trace(self) -> Tensor:
        return self.matrix.diagonal().double().sum()

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal()

    def scaled(self, factor: float) -> Dense:
        return Dense(self.place, self.quantity, self.symmetric.scaled(factor))

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Dense:
        return Dense(self.place, self.quantity, self.symmetric.to(device, dtype))
