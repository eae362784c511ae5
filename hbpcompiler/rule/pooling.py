"""Average-pooling backwards, for any number of columns: idioms (see `idioms`)."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


@idiom
def pooled_rows(columns: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Columns [N, K, *lead, *out] as [N*K, *lead, *out], as torch's kernels take them, and a stand-in for the input
    [N*K, *lead, *size], of which they read nothing but the shape: one number, expanded."""
    rows = columns.flatten(0, 1)
    return rows, rows.new_empty(1).expand(list(rows.shape[:-len(size)]) + size)


@idiom
def avg_pool2d_back(columns: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int],
                    ceil_mode: bool = False, count_include_pad: bool = True,
                    divisor_override: Optional[int] = None) -> Tensor:  # noqa: UP045
    """Columns [N, K, *lead, *out] at F.avg_pool2d's result, back to its input: [N, K, *lead, *size]."""
    rows, x = pooled_rows(columns, size)
    pulled = torch.ops.aten.avg_pool2d_backward(
        rows, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return pulled.unflatten(0, columns.shape[:2])


@idiom
def avg_pool3d_back(columns: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int],
                    ceil_mode: bool = False, count_include_pad: bool = True,
                    divisor_override: Optional[int] = None) -> Tensor:  # noqa: UP045
    """Columns [N, K, *lead, *out] at F.avg_pool3d's result, back to its input: [N, K, *lead, *size]."""
    rows, x = pooled_rows(columns, size)
    pulled = torch.ops.aten.avg_pool3d_backward(
        rows, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return pulled.unflatten(0, columns.shape[:2])


@idiom
def adaptive_avg_pool2d_back(columns: Tensor, size: list[int]) -> Tensor:
    """Columns [N, K, *lead, *out] at F.adaptive_avg_pool2d's result, back to its input: [N, K, *lead, *size]."""
    rows, x = pooled_rows(columns, size)
    return torch.ops.aten._adaptive_avg_pool2d_backward(rows, x).unflatten(0, columns.shape[:2])


@idiom
def adaptive_avg_pool3d_back(columns: Tensor, size: list[int]) -> Tensor:
    """Columns [N, K, *lead, *out] at F.adaptive_avg_pool3d's result, back to its input: [N, K, *lead, *size]."""
    rows, x = pooled_rows(columns, size)
    return torch.ops.aten._adaptive_avg_pool3d_backward(rows, x).unflatten(0, columns.shape[:2])
