"""Rows of a table picked by indices [N, length], summed or averaged over each bag, or the largest of them."""

from __future__ import annotations

import torch.nn.functional as F

from hbpcompiler.rule import Tensor


def of_bags(input: Tensor, weight: Tensor, mode: str, padding_idx: int | None = None,
            per_sample_weights: Tensor | None = None) -> Tensor:
    """[N, length] indices -> [N, features]; padding does not count."""
    rows = F.embedding(input, weight, padding_idx)
    present = None if padding_idx is None else (input != padding_idx % weight.shape[0]).unsqueeze(-1)
    if mode == "max":
        if present is None:
            return rows.amax(1)
        filled = present.any(1)  # a bag of padding alone is zero
        return rows.masked_fill(~present, float("-inf")).amax(1).masked_fill(~filled, 0.0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if present is None:
        return rows.sum(1) if mode == "sum" else rows.mean(1)
    total = (rows * present.to(rows.dtype)).sum(1)
    return total if mode == "sum" else total / present.sum(1).clamp(min=1).to(rows.dtype)
