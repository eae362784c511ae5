"""Helpers of generated files that multiply two matrices, or add their product to a total."""

from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


def onednn_linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:  # noqa: UP045  # for TorchScript
    """F.linear by oneDNN, which multiplies float32 matrices faster than BLAS on many processors."""
    compiling = False if torch.jit.is_scripting() else torch.compiler.is_compiling()  # type: ignore[attr-defined]  # untyped
    if compiling or not (x.is_cpu or x.is_meta) or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()  # oneDNN is slow where rows lie apart in memory
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def product_over_pixels(x: Tensor, y: Tensor) -> Tensor:
    """einsum("nop,nip->oi") as a 1 x 1 convolution's weight gradient: reads images pixel by pixel without copies."""
    weight = x.new_empty(1).expand(x.shape[1], y.shape[1], 1, 1)
    _, product, _ = torch.ops.aten.convolution_backward(
        x.unsqueeze(2), y.unsqueeze(2), weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    return product.flatten(1)


@idiom
def product_for_all(matrix: Tensor, columns: Tensor) -> Tensor:
    """matrix @ columns of all samples in one product, which reads the matrix once and not for each of them."""
    rows = columns.movedim(-2, -1)
    product = (rows.flatten(0, -2) @ matrix.t()).unflatten(0, rows.shape[:-1]).movedim(-1, -2)
    return product if columns.stride(-2) == 1 else product.contiguous()  # pixel by pixel, as the columns lie


@idiom
def add_product_(total: Tensor, x: Tensor, y: Tensor, scale: float = 1.0, kept: float = 1.0) -> Tensor:
    """total = kept * total + scale * x @ y.t(); kept = 0 writes over whatever it was."""
    if total.dtype == x.dtype:
        return total.addmm_(x, y.t(), beta=kept, alpha=scale)
    if kept == 0.0:
        total.zero_()
    elif kept != 1.0:
        total.mul_(kept)
    return total.add_(x @ y.t(), alpha=scale)


@idiom
def onednn_add_product_(total: Tensor, x: Tensor, y: Tensor, scale: float = 1.0, kept: float = 1.0,
                        fewest: int = 320) -> Tensor:
    """`add_product_` by `onednn_linear`, a block of rows at a time, whose product stays in cache.

    Of fewer columns than `fewest` by BLAS, into the total: a product beside it takes longer than what oneDNN gains.
    """
    if total.dtype != x.dtype or x.shape[1] < fewest:
        return add_product_(total, x, y, scale, kept)
    right = y if y.is_contiguous() or y.t().is_contiguous() else y.contiguous()
    block = max(64, 1048576 // max(1, total.shape[1]))
    for first in range(0, total.shape[0], block):
        rows = total[first : first + block]
        product = onednn_linear(x[first : first + block], right)
        if kept == 0.0:
            torch.mul(product, scale, out=rows)
        elif kept == 1.0:
            rows.add_(product, alpha=scale)
        else:
            rows.mul_(kept).add_(product, alpha=scale)
    return total


def _products_on_meta(squares: Any, sums: Any, x: Any, y: Any, block: int, kept: float = 1.0) -> Any:
    """As much arithmetic in one product."""
    product = x.transpose(0, 1).flatten(1) @ y.transpose(0, 1).flatten(1).t()
    return squares.addcmul_(product, product)


@idiom(on_meta=_products_on_meta)
def add_products_(squares: Tensor, sums: Optional[Tensor], x: Tensor, y: Tensor, block: int,  # noqa: UP045
                  kept: float = 1.0) -> Tensor:
    """squares[a, b] += sum over n of (sum over p of x[n, a, p] y[n, b, p])^2, and sums, if given, what is squared.

    A block of rows at a time for all samples, so that products stay in cache. kept = 0 writes over whatever the totals
    were.
    """
    if kept == 0.0 and x.shape[0] == 0:
        squares.zero_()
        if sums is not None:
            sums.zero_()
    for top in range(0, squares.shape[0], block):
        rows, own = x[:, top : top + block], squares[top : top + block]
        product = x.new_empty((own.shape[0], y.shape[1]))
        for n in range(x.shape[0]):
            torch.mm(rows[n], y[n].t(), out=product)
            if kept != 0.0 or n > 0:
                own.addcmul_(product, product)
                if sums is not None:
                    sums[top : top + block].add_(product)
            else:
                torch.mul(product, product, out=own)
                if sums is not None:
                    sums[top : top + block].copy_(product)
    return squares
