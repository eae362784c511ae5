"""A curvature scheme's effect on a residual, where it is born (see `schemes`)."""

from __future__ import annotations

from typing import Any

from hbpcompiler.schemes import PCH_ABS, PCH_CLIP


def diagonal_under(curvature: str, diagonal: Any) -> Any:
    """A diagonal residual, [N, *z]."""
    if curvature == PCH_ABS:
        return diagonal.abs()
    return diagonal.clamp(min=0) if curvature == PCH_CLIP else diagonal


def columns_under(curvature: str, columns: Any, signs: Any, axes: int) -> Any:
    """The columns of a residual, [N, K, *z] with so many `axes` behind K; signs [N, K], or None if all are +."""
    if curvature != PCH_CLIP or signs is None:
        return columns
    keep = (signs > 0).type_as(columns)
    for _ in range(axes):
        keep = keep.unsqueeze(-1)
    return columns * keep
