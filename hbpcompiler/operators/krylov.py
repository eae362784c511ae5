"""An operator for SciPy, and its outer eigenvalues by Lanczos' method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.errors import HbpError, InputError, NotConvergedError
from hbpcompiler.operators.matrix import Matrix

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

WHICH = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
SMALL = 64
"""Up to so many rows, the matrix is made and decomposed."""
DENSE = 2000
"""Up to so many rows it is where Lanczos' method finds too few, as of eigenvalues that are many times the same."""
ZEROS = "; the smallest ones of a GGN with more parameters than columns are zeros, which Lanczos' method does not find"
NUDGE = 1e-2
"""Of a random vector in the next start: an exact eigenvector would end the search where it begins."""


class Eigenpairs(NamedTuple):
    """Eigenvalues [k] and eigenvectors {name: [k, *theta]}."""

    values: Tensor
    vectors: dict[str, Tensor]


def to_scipy(operator: Matrix) -> LinearOperator:
    """See `Operator.to_scipy`."""
    linalg = _scipy()
    import numpy  # SciPy brings it

    def times(array: Any) -> Any:
        given = torch.from_numpy(numpy.array(array, dtype=numpy.float64))
        product = operator @ given.to(operator.device, operator.dtype)
        return product.to("cpu", torch.float64).numpy()

    def matvec(array: Any) -> Any:
        return times(array.reshape(-1))

    return linalg.LinearOperator(operator.shape, matvec=matvec, rmatvec=matvec, matmat=times, rmatmat=times,
                                 dtype=numpy.float64)


def top(operator: Matrix, k: int, which: str, tolerance: float | None, most_products: int | None,
        starts: dict[str, Tensor]) -> Eigenpairs:
    """See `Operator.top`; `starts` keeps where the next call begins."""
    size = operator.shape[0]
    if which not in WHICH:
        raise InputError(f"which must be one of {', '.join(WHICH)}, not {which!r}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= size:
        raise InputError(f"k must be a whole number from 1 to {size}, as the matrix has so many rows, not {k!r}")
    if size <= SMALL or k > size // 2:
        values, vectors = torch.linalg.eigh(operator.to_dense(size).double())
    else:
        try:
            values, vectors = _lanczos(operator, k, which, tolerance, most_products, starts.get(which))
        except NotConvergedError:
            if size > DENSE or (most_products is not None and most_products < size):
                raise
            values, vectors = torch.linalg.eigh(operator.to_dense().double())
    keys = values.abs() if which == "magnitude" else values
    order = keys.argsort(descending=which != "smallest")[:k]
    values, vectors = values[order], vectors[:, order]
    starts[which] = vectors.sum(1).cpu()
    found = vectors.to(operator.device, operator.dtype)
    return Eigenpairs(values.to(operator.device, operator.dtype), operator.to_dict(found))


def _lanczos(operator: Matrix, k: int, which: str, tolerance: float | None, most_products: int | None,
             start: Tensor | None) -> tuple[Tensor, Tensor]:
    linalg, size = _scipy(), operator.shape[0]
    if tolerance is None:
        tolerance = 1e-9 if operator.dtype == torch.float64 else 1e-5
    generator = operator.generator("top")
    first = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
    if start is not None:
        first = start / start.norm() + NUDGE * first / first.norm()
    most = max(20 * size, 2000) if most_products is None else most_products
    basis = min(size, max(2 * k + 1, 20))
    restarts = max(1, most // (basis - k))
    try:
        values, vectors = linalg.eigsh(to_scipy(operator), k, which=WHICH[which], v0=first.numpy(), tol=tolerance,
                                       ncv=basis, maxiter=restarts)
    except linalg.ArpackNoConvergence as failure:
        raise NotConvergedError(
            f"{len(failure.eigenvalues)} of {k} eigenvalues were found in {most} products; allow more (most_products), "
            f"a larger tolerance, or ask for fewer{ZEROS if which == 'smallest' else ''}") from failure
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _scipy() -> Any:
    try:
        from scipy.sparse import linalg
    except ImportError as error:
        raise HbpError("this needs SciPy: pip install scipy") from error
    return linalg
