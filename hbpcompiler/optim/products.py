"""A gradient times the factors of an inverse: nearly all of a step's own linear algebra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.compiler.program.kernels import has_onednn
from hbpcompiler.compiler.program.products import onednn_linear
from hbpcompiler.limits import DEFAULT_LIMITS


def times(vectors: Tensor, matrix: Tensor) -> Tensor:
    """vectors @ matrix, [..., n, i] times [i, j]; or [groups, i, j], for each group its own.

    Large ones in float32 by oneDNN, as programs multiply theirs. It has no derivative: without autograd only.
    """
    rows = math.prod(vectors.shape[:-1])
    is_large = (min(rows, *matrix.shape) >= DEFAULT_LIMITS.onednn_rows
                and rows * matrix.numel() >= DEFAULT_LIMITS.onednn_multiply_adds)
    is_plain = matrix.dim() == 2 and vectors.dtype == matrix.dtype and not vectors.requires_grad
    if is_large and is_plain and has_onednn(matrix.device, matrix.dtype) and not _blas_is_as_fast():
        return onednn_linear(vectors, matrix.mT)
    return vectors @ matrix


def _blas_is_as_fast() -> bool:
    """On processors with AMX (see `codegen.definitions`)."""
    return bool(torch.cpu.get_capabilities().get("amx_tile", False))
