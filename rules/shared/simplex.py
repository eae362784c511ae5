"""Columns of each position alone, as columns of a sample."""

import torch

from hbpcompiler.rule import Shape, Tensor


def positionwise(columns: Tensor, shape: Shape) -> Tensor:
    """Columns of each position alone, [N, *d, k, C] -> columns of the sample, [N, k*P, C, *d], block by block."""
    if not shape:
        return columns
    blocks = torch.diag_embed(columns.flatten(1, -3).permute(0, 2, 3, 1))  # [N, k, C, P, P]
    return torch.unflatten(blocks.movedim(-1, 2).flatten(1, 2), -1, shape)
