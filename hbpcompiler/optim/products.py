"""A gradient times the factors of an inverse: nearly all of a step's own linear algebra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.compiler.program.kernels import has_onednn
from hbpcompiler.compiler.program.products import onednn_linear
from hbpcompiler.limits import DEFAULT_LIMITS


def times(left: Tensor, right: Tensor) -> Tensor:
    """left @ right: vectors [..., n, i] times a matrix [i, j], or a matrix [o, n] times vectors [..., n, i]; or, with
    [groups, i, j] for either, for each group its own.

    Large ones in float32 by oneDNN, as programs multiply theirs. It has no derivative: without autograd only.
    """
    if not _is_for_onednn(left, right):
        return left @ right
    product = onednn_linear(left, right.reshape(right.shape[-2:]).mT)
    return product.reshape(*right.shape[:-2], *product.shape) if right.dim() > 2 else product


def _is_for_onednn(left: Tensor, right: Tensor) -> bool:
    """Whether it is a large product with one matrix, of numbers that oneDNN multiplies faster than BLAS."""
    rows = math.prod(left.shape[:-1])
    is_large = (min(rows, *right.shape[-2:]) >= DEFAULT_LIMITS.onednn_rows
                and rows * right.numel() >= DEFAULT_LIMITS.onednn_multiply_adds)
    is_plain = left.dtype == right.dtype and not (left.requires_grad or right.requires_grad)
    has_one = right.dim() == 2 or (left.dim() == 2 and math.prod(right.shape[:-2]) == 1)
    return is_large and is_plain and has_one and has_onednn(right.device, right.dtype) and not _blas_is_as_fast()


def _blas_is_as_fast() -> bool:
    """On processors with AMX (see `codegen.definitions`)."""
    return bool(torch.cpu.get_capabilities().get("amx_tile", False))
