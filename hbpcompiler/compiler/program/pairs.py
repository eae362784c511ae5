"""Helpers of generated files that go over pairs of blocks of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


def _pairs_on_meta(x: Tensor, block: int) -> Tensor:
    """As many as there are, and as long as where the batch has two blocks."""
    blocks = max(2, -(-x.shape[0] // block))
    return torch.empty((blocks * (blocks - 1) // 2, 2 * block), dtype=torch.int64, device=x.device)


@idiom(on_meta=_pairs_on_meta)
def pairs_of_blocks(x: Tensor, block: int) -> Tensor:
    """Numbers of samples of x, [pairs, 2 * block]: each two blocks once, so that any two samples are in one row.

    The last block begins early enough to be as long as the others. A batch of two blocks or less is one row.
    """
    count = x.shape[0]
    if count <= 2 * block:
        return torch.arange(count, device=x.device).unsqueeze(0)
    starts = torch.arange(0, count, block, device=x.device).clamp(max=count - block)
    return (torch.combinations(starts).unsqueeze(2) + torch.arange(block, device=x.device)).flatten(1)


@idiom
def put_pairs_(total: Tensor, part: Tensor, samples: Tensor) -> Tensor:
    """total[n k, m j] = part, the inner products of these samples n and m with each other."""
    count = samples.shape[0]
    rows, columns = part.shape[0] // count, part.shape[1] // count
    where = (samples.unsqueeze(1) * rows + torch.arange(rows, device=part.device)).flatten()
    there = (samples.unsqueeze(1) * columns + torch.arange(columns, device=part.device)).flatten()
    total[where.unsqueeze(1), there] = part
    return total
