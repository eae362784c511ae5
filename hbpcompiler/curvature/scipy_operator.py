"""A curvature as SciPy sees a matrix."""

from __future__ import annotations

from typing import Any

import torch

from hbpcompiler.errors import ScipyMissingError


def linear_operator(curvature: Any) -> Any:
    """A scipy.sparse.linalg.LinearOperator; products are computed where the curvature is, and are numpy arrays."""
    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise ScipyMissingError("to_scipy needs SciPy: pip install scipy") from error
    dtype = torch.promote_types(curvature.dtype, torch.float32)

    def times(array: Any) -> Any:
        given = torch.as_tensor(array, device=curvature.device).to(dtype)
        return (curvature @ given).cpu().numpy()

    kind = torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
    def vector(array: Any) -> Any:
        return times(array.reshape(-1))

    return LinearOperator(curvature.shape, matvec=vector, rmatvec=vector, matmat=times, rmatmat=times, dtype=kind)
