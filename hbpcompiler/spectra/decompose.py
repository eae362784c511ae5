"""Eigenvalues of a group's GGN from inner products of its columns, or from the columns where these are smaller.

With V = [v_nk] the columns of the N samples, scaled so that the block is G = V V^T, V^T V has the same eigenvalues but
for zeros. From V^T V x = lambda x follow e = V x / sqrt(lambda), and without any e: the slopes g_n . e, and sample n's
share of lambda, which is sum_k x_nk^2 (Dangel, Tatzel, Hennig 2022, section 3: since V^T V x is lambda x, sample n's
part of V^T e needs no second product). Everything is in float64; V itself is not needed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.errors import InputError


@dataclass(frozen=True)
class Products:
    """What the first phase gives of a group that has more parameters than columns."""

    gram: Tensor
    """[N, K, N, K]: V^T V."""
    cross: Tensor
    """[N, K, N]: V^T g, with sample m's share of the gradient of L in [:, :, m]."""

    @property
    def order(self) -> int:
        """Of the matrix that is decomposed."""
        return self.gram.shape[0] * self.gram.shape[1]

    @property
    def bytes(self) -> int:
        """Of what is held meanwhile."""
        return self.gram.nbytes + self.cross.nbytes


@dataclass(frozen=True)
class Columns:
    """What it gives of a group that has fewer parameters than columns."""

    columns: Tensor
    """[N, K, D]: V."""
    gradients: Tensor
    """[N, D]: the samples' shares of the gradient of L."""

    @property
    def order(self) -> int:
        """Of the matrix that is decomposed."""
        return self.columns.shape[2]

    @property
    def bytes(self) -> int:
        """Of what is held meanwhile, the columns in float64 too."""
        return self.columns.nbytes + 8 * self.columns.numel() + self.gradients.nbytes


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues above the cut, falling, and what goes with them; float64."""

    eigenvalues: Tensor
    """[k]"""
    weights: Tensor
    """[N, K, k]: x / sqrt(lambda), so that e = sum_nk weights_nk v_nk."""
    slopes: Tensor
    """[N, k]: the samples' shares of the gradient of L along e; they add up to it."""
    dropped: int
    """How many eigenvalues, of the smaller matrix, are not above the cut."""
    directions: Tensor | None = None
    """[D, k]: e, where the decomposition gave it."""

    @property
    def curvatures(self) -> Tensor:
        """[N, k]: the samples' shares of the eigenvalue; they add up to it."""
        return self.weights.square().sum(1) * self.eigenvalues.square()

    @property
    def gradient(self) -> Tensor:
        """[k]: the gradient of L along e."""
        return self.slopes.sum(0)


def decompose(group: Products | Columns, tolerance: float) -> Eigen:
    """The eigenvalues larger than `tolerance` times the largest. Raises InputError for numbers that are not finite."""
    return _of_products(group, tolerance) if isinstance(group, Products) else _of_columns(group, tolerance)


def nothing(samples: int) -> Eigen:
    """Of a group of which no parameter influences the loss."""
    none = torch.zeros(0, dtype=torch.float64, device="cpu")
    return Eigen(none, none.new_zeros(samples, 1, 0), none.new_zeros(samples, 0), 0)


def _of_products(group: Products, tolerance: float) -> Eigen:
    samples, order = len(group.gram), group.order
    values, weights = _eigen(group.gram.reshape(order, order).double(), tolerance)
    weights /= values.sqrt()
    slopes = group.cross.reshape(order, samples).double().mT @ weights
    return Eigen(values, weights.view(samples, order // samples, -1), slopes, order - len(values))


def _of_columns(group: Columns, tolerance: float) -> Eigen:
    columns = group.columns.double()
    flat = columns.flatten(0, 1)
    values, directions = _eigen(flat.mT @ flat, tolerance)
    return Eigen(values, columns @ (directions / values), group.gradients.double() @ directions,
                 len(directions) - len(values), directions)


def _eigen(matrix: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues above the cut, falling, and their eigenvectors as columns, of a symmetric matrix."""
    if not bool(matrix.isfinite().all()):
        raise InputError("the curvature of this batch is not finite (nan or inf), so it has no eigenvalues; look at "
                         "the loss and the inputs")
    values, vectors = torch.linalg.eigh(matrix)
    cut = tolerance * values.max().clamp(min=0) if len(values) else 0
    kept = (values > cut).nonzero().flatten().flip(0)
    return values[kept], vectors[:, kept]
