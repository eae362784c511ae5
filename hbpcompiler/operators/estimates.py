"""Estimates from products with random vectors, for what has nothing exact."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.errors import InputError
from hbpcompiler.operators.matrix import Matrix

WIDEST = 16
"""Vectors in one product."""


class Estimate(NamedTuple):
    """A value and its standard error, of the same shape."""

    value: Tensor
    error: Tensor


class Density(NamedTuple):
    """A density [points] of eigenvalues over a grid [points]; its integral is one."""

    grid: Tensor
    density: Tensor


def trace(operator: Matrix, products: int, generator: torch.Generator) -> Estimate:
    """XTrace (Epperly, Tropp and Webber 2024, section 2): k = products / 2 random vectors W, and A W for a basis Q.

    Each of k estimates leaves one vector out of the basis: the trace on the span of the others is exact, and the vector
    left out estimates what remains outside. All small matrices are in double precision.
    """
    size, count = operator.shape[0], _number(products, 4) // 2
    if count >= size:
        value = operator.to_dense(size).double().diagonal().sum()
        return _estimate(operator, value, torch.zeros_like(value))
    vectors = _signs(size, count, generator)
    after = _times(operator, vectors)
    basis, corner = torch.linalg.qr(after)
    inner = basis.T @ _times(operator, basis)  # Q^T A Q
    inner = (inner + inner.T) / 2
    sizes = corner.diagonal().abs()
    if float(sizes.min()) <= count * torch.finfo(operator.dtype).eps * float(sizes.max()):
        value = inner.trace()  # fewer directions than vectors: the basis holds all of the matrix
        return _estimate(operator, value, torch.zeros_like(value))
    outside = torch.linalg.inv(corner).T
    outside = outside / outside.norm(dim=0)  # column i, in the basis, is orthogonal to all of A W but its column i
    seen = basis.T @ vectors
    values = []
    for i in range(count):
        without = torch.eye(count, dtype=basis.dtype, device="cpu") - torch.outer(outside[:, i], outside[:, i])
        part = without @ seen[:, i]
        rest = vectors[:, i] @ after[:, i] - 2 * part @ corner[:, i] + part @ inner @ part
        values.append((without @ inner).trace() + rest)
    found = torch.stack(values)
    return _estimate(operator, found.mean(), found.std() / math.sqrt(count))


def diagonal(operator: Matrix, products: int, generator: torch.Generator) -> Estimate:
    """The mean of w * (A w) over vectors w of random signs (Bekas, Kokiopoulou and Saad 2007)."""
    count = _number(products, 2)
    vectors = _signs(operator.shape[0], count, generator)
    found = vectors * _times(operator, vectors)
    return _estimate(operator, found.mean(1), found.std(1) / math.sqrt(count))


def density(operator: Matrix, points: int, steps: int, vectors: int, width: float | None,
            generator: torch.Generator) -> Density:
    """Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017): see `Operator.density`."""
    size, nodes, weights = operator.shape[0], [], []
    for _ in range(_number(vectors, 1)):
        start = _signs(size, 1, generator).squeeze(1) / math.sqrt(size)
        values, first = _tridiagonal(operator, start, min(_number(steps, 2), size))
        nodes.append(values)
        weights.append(first.square() / vectors)
    at, mass = torch.cat(nodes), torch.cat(weights)
    low, high = float(at.min()), float(at.max())
    deviation = width if width is not None else (high - low or 1.0) / 100
    grid = torch.linspace(low - 4 * deviation, high + 4 * deviation, points, dtype=torch.float64, device="cpu")
    bells = torch.exp(-((grid.unsqueeze(1) - at) / deviation).square() / 2) / (deviation * math.sqrt(2 * math.pi))
    return Density(grid, bells @ mass)


def _tridiagonal(operator: Matrix, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Lanczos' tridiagonal matrix, and the first entries of its eigenvectors."""
    basis, diagonal, beside = [start], [], []
    for _ in range(steps):
        after = _times(operator, basis[-1].unsqueeze(1)).squeeze(1)
        if not after.isfinite().all():
            raise InputError("products with this operator are not finite, so that its eigenvalues have no density")
        diagonal.append(after @ basis[-1])
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough to be orthogonal to working precision
            after = after - known.T @ (known @ after)
        beside.append(after.norm())
        if float(beside[-1]) <= torch.finfo(operator.dtype).eps * float(torch.stack(diagonal).abs().max()):
            break
        basis.append(after / beside[-1])
    off = torch.stack(beside)[: len(diagonal) - 1]
    matrix = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors[0]


def _signs(size: int, count: int, generator: torch.Generator) -> Tensor:
    """[D, count] of +1 and -1."""
    return 2.0 * torch.randint(0, 2, (size, count), generator=generator, dtype=torch.float64, device="cpu") - 1


def _times(operator: Matrix, vectors: Tensor) -> Tensor:
    """In double precision outside."""
    parts = [operator @ part.to(operator.device, operator.dtype) for part in vectors.split(WIDEST, 1)]
    return torch.cat([part.to("cpu", torch.float64) for part in parts], 1)


def _estimate(operator: Matrix, value: Tensor, error: Tensor) -> Estimate:
    return Estimate(value.to(operator.device, operator.dtype), error.to(operator.device, operator.dtype))


def _number(given: Any, least: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise InputError(f"there must be at least {least} products, vectors or steps, as a whole number, not {given!r}")
    return given
