"""A symmetric matrix and its eigenvectors, which are found once, in float64, when something asks for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hbpcompiler.curvature.inverses import PIECE, fits, invert, is_positive, without_traces
from hbpcompiler.errors import InputError

ROUNDING = 10.0
"""Times eps, the root of the matrix's size and its Frobenius norm: by so much rounding may move an eigenvalue."""
JITTERS = (1e2, 1e5, 1e8)
"""Times float64's eps and the mean of the diagonal's absolute values: added to the diagonal where eigh fails."""
BEYOND_ROUNDING = 10.0
"""Times rounding: a shift of that size is hardly changed by whether eigenvalues below zero are taken for zero."""


class Eigen(NamedTuple):
    """Eigenvalues [..., d] and eigenvectors [..., d, d], as columns; float64."""

    values: Tensor
    vectors: Tensor


class Symmetric:
    """A symmetric matrix [d, d], or one for each group of a convolution, [g, d, d].

    `eps` is the relative rounding error of its entries: eigenvalues below zero by no more than that are zero, and one
    that is no larger cannot be told from zero.
    """

    def __init__(self, matrix: Tensor, label: str, eps: float, eigen: Eigen | None = None) -> None:
        self.matrix = matrix
        self.label = label
        self.eps = eps
        self._eigen = eigen

    @property
    def eigen(self) -> Eigen:
        """Eigenvalues in ascending order, with what rounding put below zero at zero; computed at the first use."""
        if self._eigen is None:
            found = _eigh(self.matrix, self.label)
            below = (found.values < 0) & (found.values >= -self._rounding_of(found.values))
            self._eigen = Eigen(found.values.masked_fill(below, 0.0), found.vectors)
        return self._eigen

    def know(self, eigen: Eigen) -> None:
        """Take eigenvalues and eigenvectors that were found elsewhere, as `eigen` has them there."""
        self._eigen = eigen

    def forget(self) -> None:
        """Give up eigenvalues and eigenvectors: they are found again where something asks for them."""
        self._eigen = None

    @property
    def is_singular(self) -> bool:
        """Whether an eigenvalue cannot be told from zero."""
        values = self.eigen.values
        return bool((values.abs() <= self._rounding_of(values)).any())

    def with_eigenvalues(self, values: Tensor, label: str) -> Symmetric:
        """The matrix with the same eigenvectors and these eigenvalues."""
        vectors = self.eigen.vectors
        found = self._of_double((vectors * values.unsqueeze(-2)) @ vectors.mT, label)
        found.eps, found._eigen = 0.0, Eigen(values, vectors)
        return found

    @property
    def eigenvectors_known(self) -> bool:
        return self._eigen is not None

    def inverse_shifted(self, shift: Tensor, label: str, into: Tensor | None = None) -> Symmetric | None:
        """(matrix + shift)^-1 by Cholesky's method, in float64, in a quarter of the time of eigenvectors; a shift for
        each group, [] or [g]. It is written `into` this tensor where that has its shape and dtype.

        None where the eigenvectors must say more, `into` may be anything then: where the matrix has an eigenvalue below
        zero that is not rounding, or rounding is not far below the shift.
        """
        rounding = self._rounding(_norm(self.matrix))
        if not bool((shift > BEYOND_ROUNDING * rounding).all()) or not is_positive(self.matrix, rounding):
            return None
        place = into if fits(into, self.matrix) else torch.empty_like(self.matrix,
                                                                       memory_format=torch.contiguous_format)
        assert place is not None
        if not invert(self.matrix, shift, place):
            return None
        return Symmetric(place, label, torch.finfo(place.dtype).eps)

    def scaled(self, factor: float) -> Symmetric:
        """Times a positive number."""
        eigen = None if self._eigen is None else Eigen(self._eigen.values * factor, self._eigen.vectors)
        return Symmetric(self.matrix * factor, self.label, self.eps, eigen)

    def to(self, device: torch.device | None, dtype: torch.dtype | None) -> Symmetric:
        """On another device with what is known of it; in another dtype without, as its entries are others then."""
        matrix = self.matrix.to(device=device, dtype=dtype)
        if self._eigen is None or matrix.dtype != self.matrix.dtype:
            return Symmetric(matrix, self.label, max(self.eps, torch.finfo(matrix.dtype).eps))
        return Symmetric(matrix, self.label, self.eps, Eigen(*(part.to(device) for part in self._eigen)))

    def _of_double(self, matrix: Tensor, label: str) -> Symmetric:
        """A function of this matrix, in its dtype."""
        own = symmetrised(matrix).to(self.matrix.dtype).contiguous()  # as from a file: products are bit-equal
        without_traces(own)
        return Symmetric(own, label, torch.finfo(own.dtype).eps)

    def _rounding_of(self, values: Tensor) -> Tensor:
        """Of eigenvalues [..., d]: [..., 1]."""
        return self._rounding(values.norm(dim=-1, keepdim=True))

    def _rounding(self, norm: Tensor) -> Tensor:
        size: int = self.matrix.shape[-1]
        return ROUNDING * self.eps * size**0.5 * norm


def asymmetry(matrix: Tensor) -> float:
    """The largest difference from the transpose [..., d, d]; some rows at a time, so that there is no copy of it."""
    found = 0.0
    if matrix.numel():
        for start in range(0, matrix.shape[-1], step := max(1, PIECE * matrix.shape[-1] // matrix.numel())):
            rows = slice(start, start + step)
            found = max(found, float((matrix[..., rows, :] - matrix[..., rows].mT).abs_().max()))
    return found


def symmetrised(matrix: Tensor) -> Tensor:
    """Exactly symmetric: the mean with the transpose, or the matrix itself if it is so already."""
    return matrix if torch.equal(matrix, matrix.mT) else (matrix + matrix.mT) / 2


def _norm(matrix: Tensor) -> Tensor:
    """Frobenius' norm of each, [..., d, d] -> [...], in float64, some rows at a time."""
    size = matrix.shape[-1]
    rows = max(1, PIECE * size // max(1, matrix.numel()))
    squares = [part.double().square().sum((-2, -1)) for part in matrix.split(rows, -2)]
    return torch.stack(squares).sum(0).sqrt()


def _eigh(matrix: Tensor, label: str) -> Eigen:
    """In float64; where that fails, of the matrix with a little more on its diagonal, which is taken off again.

    The eigenvectors take the place of the float64 copy that they are found from: beside it there is no more than what
    LAPACK works with, two matrices of that size.
    """
    if not _is_finite(matrix):
        raise InputError(f"{label} has entries that are NaN or infinite; look at the inputs and the loss")
    scale = matrix.diagonal(dim1=-2, dim2=-1).double().abs().mean().item() * torch.finfo(torch.float64).eps
    for jitter in (0.0, *JITTERS):
        shift = jitter * scale
        # column by column, as LAPACK has it: what is written is what was read, and not copied
        vectors = matrix.to(torch.float64, copy=True, memory_format=torch.contiguous_format).mT
        values = vectors.new_empty(matrix.shape[:-1])
        if shift:
            vectors.diagonal(dim1=-2, dim2=-1).add_(shift)
        try:
            torch.linalg.eigh(vectors, out=(values, vectors))
        except RuntimeError:  # torch's LinAlgError, or a backend's own
            continue
        if all(_is_finite(part) for part in (values, vectors)):
            return Eigen(values - shift, vectors)
    raise InputError(f"torch.linalg.eigh fails for {label}, of shape {list(matrix.shape)}, even with its diagonal "
                     f"raised by {JITTERS[-1] * torch.finfo(torch.float64).eps:.0e} of its mean: scale the loss, or "
                     "leave the parameter out")


def _is_finite(matrix: Tensor) -> bool:
    """By its least and largest entries, which NaN is handed on to: without a copy of it."""
    return not matrix.numel() or bool(torch.stack(matrix.aminmax()).isfinite().all())


def upper_triangle(matrix: Tensor) -> Tensor:
    """[..., d, d] -> [..., d (d + 1) / 2], row by row: all there is in a symmetric matrix."""
    return matrix[..., _upper(matrix.shape[-1], matrix.device)].clone()


def from_upper_triangle(entries: Tensor) -> Tensor:
    """The inverse of `upper_triangle`. InputError if no matrix has so many entries."""
    size = int((8 * entries.shape[-1] + 1) ** 0.5 - 1) // 2 if entries.dim() else 0
    if not entries.dim() or size * (size + 1) // 2 != entries.shape[-1]:
        raise InputError(f"{list(entries.shape)} is not the shape of a matrix's upper triangle")
    matrix = entries.new_zeros(*entries.shape[:-1], size, size)
    matrix[..., _upper(size, entries.device)] = entries
    return matrix + matrix.triu(1).mT


def _upper(size: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu()
