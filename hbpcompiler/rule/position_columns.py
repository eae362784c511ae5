"""Columns of each position alone, as columns of a sample: all of them, or some."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.rule.op import Shape


def positionwise(columns: Tensor, shape: Shape) -> Tensor:
    """Columns of each position alone, [N, *d, k, C] -> columns of the sample, [N, k*P, C, *d], block by block."""
    if not shape:
        return columns
    blocks = torch.diag_embed(columns.flatten(1, -3).permute(0, 2, 3, 1))  # [N, k, C, P, P]
    return torch.unflatten(blocks.movedim(-1, 2).flatten(1, 2), -1, shape)


def some_positionwise(columns: Tensor, shape: Shape, numbers: Tensor) -> Tensor:
    """Those of the sample's columns with these numbers [K], as [N, K, C, *d]: number j P + p is column j at position p.
    """
    count = math.prod(shape)
    rows = columns.flatten(1, -3).transpose(1, 2).flatten(1, 2)  # [N, k*P, C]
    at = torch.nn.functional.one_hot(numbers % count, count)  # [K, P]
    chosen = rows.index_select(1, numbers).unsqueeze(-1) * at.type_as(rows).unsqueeze(1)  # [N, K, C, P]
    return torch.unflatten(chosen, -1, shape)
