"""Inverses of numbers and of symmetric positive definite matrices, these by Cholesky's method: in float64, into memory
that is there.

A large matrix is taken apart into halves, [[A, C^T], [C, D]], and its factor is [[L, 0], [U, M]] with

    L L^T = A,   U = C L^-T,   M M^T = D - U U^T,

and the inverse, with V = M^-1 U L^-1, is [[(L L^T)^-1 + V^T V, -(M^-T V)^T], [-M^-T V, (M M^T)^-1]]. Two of the three
quarters in float64 take the memory of the whole matrix in float32, and the third lies where the inverse will be: where
that is known, all of it needs no more than one float32 copy. Triangular solves are as stable as the whole factor's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WHOLE = 2**17
"""Entries of matrices that are factored as they are, in float64: many small ones some at a time."""
PIECE = 2**15
"""Entries at a time where a pass over a matrix makes temporary ones."""
ROWS = 64
"""At a time where entries of a float64 matrix are written elsewhere, or mirrored."""
TRACE, TRACE_OF_FLOATS = 1e-20, 1e-14
"""Times the root of the product of two diagonal entries: no entry of theirs is so small but by rounding; and what is
nothing beside the rounding of narrower dtypes than float64, in which products of two such entries are denormal."""


def is_positive(matrix: Tensor, shift: Tensor) -> bool:
    """Whether matrix + shift is positive definite: [d, d] and [], or [g, d, d] and [g]. Nothing is changed."""
    return all(_halves_are_positive(*part) if _is_large(part[0]) else _cholesky(_double(*part))
               for part in _parts(matrix, shift))


def invert(matrix: Tensor, shift: Tensor, into: Tensor) -> bool:
    """(matrix + shift)^-1 into `into`, which is contiguous, exactly symmetric; False, and `into` is of no worth, where
    that is not positive definite."""
    places = _parts(into, shift)
    for (part, own), (place, _) in zip(_parts(matrix, shift), places, strict=True):
        if not (_halves_inverted(part, own, place) if _is_large(part) else _inverted(part, own, place)):
            return False
        without_traces(place)
    return True


def _parts(matrix: Tensor, shift: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A large matrix by itself, small ones some at a time, each with its shift."""
    if matrix.dim() == 2:
        yield matrix, shift
        return
    count = 1 if _is_large(matrix[:1]) else max(1, WHOLE // max(1, matrix.shape[-1] ** 2))
    for part, own in zip(matrix.split(count), shift.expand(len(matrix)).split(count), strict=True):
        yield (part[0], own[0]) if _is_large(part) else (part, own)


def _is_large(matrix: Tensor) -> bool:
    return matrix.shape[-1] ** 2 > WHOLE


def _double(matrix: Tensor, shift: Tensor) -> Tensor:
    """A copy of the sum in float64."""
    double = matrix.to(torch.float64, copy=True).contiguous()
    double.diagonal(dim1=-2, dim2=-1).add_(shift.unsqueeze(-1))
    return double


def _cholesky(matrix: Tensor) -> bool:
    """The upper factor, in the matrix' place: its rows are LAPACK's columns, and nothing is copied. Below it there is
    no number that means something. False where there is none."""
    failed = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    factor = matrix.mT
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    return not bool(failed.any())


def _inverted(matrix: Tensor, shift: Tensor, into: Tensor) -> bool:
    """In one piece."""
    double = _double(matrix, shift)
    if not _cholesky(double):
        return False
    torch.cholesky_inverse(double.mT, out=double.mT)
    into.copy_(double)
    _mirror(into)
    return True


def reciprocals(values: Tensor, damping: float, rounding: float, into: Tensor | None) -> Tensor | None:
    """1 / (values + damping) of each number, found in float64 some at a time, `into` this tensor where it fits; what
    lies below zero by rounding times the largest, no more, is zero. None where others do, or nothing is added."""
    least, most = (float(end) for end in values.aminmax()) if values.numel() else (0.0, 0.0)
    if not (damping > 0 and least >= -rounding * max(-least, most)):
        return None
    place = into if fits(into, values) else torch.empty_like(values, memory_format=torch.contiguous_format)
    assert place is not None
    for part, own in zip(values.reshape(-1).split(PIECE), place.view(-1).split(PIECE), strict=True):
        own.copy_(part.double().clamp(min=0.0).add_(damping).reciprocal_())
    return place


def fits(into: Tensor | None, like: Tensor) -> bool:
    """Whether what is like this tensor may be written there."""
    return (into is not None and into.shape == like.shape and into.dtype == like.dtype
            and into.device == like.device and into.is_contiguous())


# -- in halves --------------------------------------------------------------------------------------------------------


def _halves_are_positive(matrix: Tensor, shift: Tensor) -> bool:
    half = len(matrix) // 2
    first = _double(matrix[:half, :half], shift)
    if not _cholesky(first):
        return False
    across = _across(matrix, first, half)
    del first
    return _cholesky(_rest(matrix, shift, across, half))


def _across(matrix: Tensor, first: Tensor, half: int) -> Tensor:
    """U^T, of the factor L^T."""
    across = matrix[half:, :half].to(torch.float64, copy=True).contiguous()
    torch.linalg.solve_triangular(first, across, upper=True, left=False, out=across)
    return across


def _rest(matrix: Tensor, shift: Tensor, across: Tensor, half: int) -> Tensor:
    """D + shift - U U^T."""
    rest = _double(matrix[half:, half:], shift)
    return rest.addmm_(across, across.mT, alpha=-1)


def _halves_inverted(matrix: Tensor, shift: Tensor, into: Tensor) -> bool:
    half = len(matrix) // 2
    first = _quarter(into, half)
    first.copy_(matrix[:half, :half])
    first.diagonal().add_(shift)
    if not _cholesky(first):
        return False
    across = _across(matrix, first, half)
    rest = _rest(matrix, shift, across, half)
    if not _cholesky(rest):
        return False
    torch.linalg.solve_triangular(rest.mT, across, upper=False, out=across)
    torch.linalg.solve_triangular(first.mT, across, upper=False, left=False, out=across)
    torch.cholesky_inverse(first.mT, out=first.mT)
    first.addmm_(across.mT, across)
    for rows in _rows(half):  # the quarter lies below what is written here
        into[rows, :half] = first[rows]
    torch.linalg.solve_triangular(rest, across, upper=True, out=across)
    torch.cholesky_inverse(rest.mT, out=rest.mT)
    into[half:, :half] = across.neg_()
    into[half:, half:] = rest
    _mirror(into)
    return True


def _quarter(into: Tensor, half: int) -> Tensor:
    """[half, half] of float64 in the lower rows of a float32 matrix, or by itself where it does not lie there."""
    size = into.element_size()
    if size * 2 != torch.float64.itemsize or into.storage_offset() % 2:
        return torch.empty(half, half, dtype=torch.float64, device=into.device)
    start = -(-half * len(into) // 2) * 2
    return into.reshape(-1)[start:start + 2 * half * half].view(torch.float64).view(half, half)


# -- passes over a matrix ---------------------------------------------------------------------------------------------


def _rows(count: int) -> Iterator[slice]:
    return (slice(start, min(count, start + ROWS)) for start in range(0, count, ROWS))


def _mirror(matrix: Tensor) -> None:
    """Exactly symmetric by the entries below its diagonal, in place: [..., d, d]."""
    for rows in _rows(matrix.shape[-1]):
        matrix[..., :rows.start, rows] = matrix[..., rows, :rows.start].mT
        tile = matrix[..., rows, rows]
        tile.copy_(tile.tril() + tile.tril(-1).mT)


def without_traces(matrix: Tensor) -> None:
    """Zeros where entries are far below rounding, in place: rows that had nothing in common (dead units) have traces of
    1e-40 and the like, whose products leave the range of normal numbers and take twenty times as long."""
    trace = TRACE if matrix.dtype == torch.float64 else TRACE_OF_FLOATS
    size = matrix.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    for rows in _rows(matrix.shape[-1]):
        part = matrix[..., rows, :]
        part.masked_fill_(part.abs() < trace * size[..., rows].unsqueeze(-1) * size.unsqueeze(-2), 0.0)
