"""Helpers of generated files that count numbers in the bins of a histogram."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom

MAGNITUDES = (-40, 64, 2)
"""Of gradients: bins from 2^-40 on, for 64 octaves, two each."""


PARAMETER_MAGNITUDES = (-16, 24, 1)


def _cells_on_meta(x: Any, edges: Any, low: int, octaves: int, parts: int) -> Any:
    return torch.empty(x.shape, dtype=torch.int64, device=x.device)


@idiom(on_meta=_cells_on_meta)
def histogram_cells(x: Tensor, edges: Optional[Tensor], low: int, octaves: int, parts: int) -> Tensor:  # noqa: UP045
    """The bin of each number: between the edges given, or, without, by sign and magnitude, read off its bits.

    Those are 2 octaves parts + 1 bins: in the middle what is smaller than 2^low, on both sides as many octaves of 1 or
    2 parts each. The outermost bins have what is beyond them, too.
    """
    if edges is not None:
        return torch.bucketize(x, edges[1:-1], right=True)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]  # untyped
        fraction, exponent = torch.frexp(x)  # TorchScript knows no views of another dtype
        half = (fraction.abs() >= 0.75).to(torch.int32) * (parts - 1)
        magnitude = torch.where(x == 0, torch.zeros_like(exponent), (exponent - 1 - low) * parts + half + 1)
        magnitude = torch.where(x.isfinite(), magnitude, torch.full_like(magnitude, octaves * parts))
        negative = x < 0
    else:
        wide = x.dtype == torch.float64
        mantissa, bias, positive = (52, 1023, 9223372036854775807) if wide else (23, 127, 2147483647)
        bits = x.contiguous().view(torch.int64) if wide else x.float().contiguous().view(torch.int32)
        magnitude = ((bits & positive) >> (mantissa + 1 - parts)) - ((bias + low) * parts - 1)
        negative = bits < 0
    magnitude = magnitude.clamp(0, octaves * parts)
    return torch.where(negative, -magnitude, magnitude) + octaves * parts


@idiom
def empty_histogram(x: Tensor, edges: Optional[Tensor], bins: int) -> Tensor:  # noqa: UP045
    """Zeros, for each of the bins between the edges given, or of so many."""
    return torch.zeros(bins if edges is None else edges.shape[0] - 1, dtype=torch.int64, device=x.device)


@idiom
def empty_histogram_2d(x: Tensor, edges: Optional[Tensor], bins: int, row_edges: Optional[Tensor],  # noqa: UP045
                       rows: int) -> Tensor:
    """Zeros, a row for each of the bins between `row_edges`, or of so many."""
    columns = bins if edges is None else edges.shape[0] - 1
    return torch.zeros(rows if row_edges is None else row_edges.shape[0] - 1, columns, dtype=torch.int64,
                       device=x.device)


@idiom(on_meta=lambda counts, cells, rows: counts)
def add_histogram_(counts: Tensor, cells: Tensor, rows: Optional[Tensor]) -> Tensor:  # noqa: UP045
    """Counts [B] of the cells [n, k, *theta]; [R, B] where rows [*theta] say the row that each entry is counted in."""
    if rows is not None:
        cells = cells + rows * counts.shape[-1]
    return counts.add_(torch.bincount(cells.flatten(), minlength=counts.numel()).reshape(counts.shape))


@idiom(on_meta=lambda counts, x, edges, low, octaves, parts: counts)
def count_entries_(counts: Tensor, x: Tensor, edges: Optional[Tensor], low: int, octaves: int, parts: int,  # noqa: UP045
                   ) -> Tensor:
    """Counts [B] of the numbers in `histogram_cells`; by magnitude first in a bin for each leading part of the bits.

    As many at a time as stay in the processor's cache.
    """
    if edges is not None or torch.jit.is_scripting():  # type: ignore[attr-defined]  # untyped
        return add_histogram_(counts, histogram_cells(x, edges, low, octaves, parts), None)
    wide = x.dtype == torch.float64
    shift, half, bias = (53 - parts, 1024 << parts, 1023) if wide else (24 - parts, 128 << parts, 127)
    bits = (x.contiguous().view(torch.int64) if wide else x.float().contiguous().view(torch.int32)).view(-1)
    fine = torch.zeros(2 * half, dtype=torch.int64, device=x.device)
    own = torch.empty(min(bits.shape[0], 131072), dtype=bits.dtype, device=x.device)
    for start in range(0, bits.shape[0], 131072):  # negative numbers come first
        part = bits[start : start + 131072]
        place = torch.bitwise_right_shift(part, shift, out=own[: part.shape[0]]).add_(half)
        fine += torch.bincount(place, minlength=2 * half)
    start, end, middle = (bias + low) * parts, (bias + low + octaves) * parts, octaves * parts
    signs = fine.view(2, half)
    within = signs[:, start:end].clone()
    within[:, -1] += signs[:, end:].sum(1)
    counts[:middle] += within[0].flip(0)
    counts[middle] += signs[:, :start].sum()
    counts[middle + 1 :] += within[1]
    return counts
