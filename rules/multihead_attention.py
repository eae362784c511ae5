"""nn.MultiheadAttention, traced through an equivalent that leaves the sample axis in front.

torch's own forward moves it behind the positions. Self-attention with batch_first=True, one size of query, key and
value; the attention itself is scaled_dot_product_attention, or a softmax written out where the weights are wanted.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hbpcompiler.rule import ModuleRule, Tensor


def refuse(module: nn.MultiheadAttention) -> str | None:
    if not module.batch_first:
        return "batch_first=False puts the positions before the samples; construct it with batch_first=True"
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        return "kdim, vdim, add_bias_kv and add_zero_attn are not supported"
    if module.dropout and module.training:
        return "dropout inside the attention is not supported in train mode; use dropout=0.0"
    return None


def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
            need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
            is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
    if query is not key or key is not value:
        raise NotImplementedError("attention between two sequences takes parts of one weight, which is not supported; "
                                  "only self-attention is")
    batch, length, width = query.shape
    heads = module.num_heads
    projected = F.linear(query, module.in_proj_weight, module.in_proj_bias)
    # [N, T, 3 E] -> three times [N, heads, T, E / heads]
    parts = projected.reshape(batch, length, 3, heads, width // heads).transpose(1, 3)
    q, k, v = parts.select(2, 0), parts.select(2, 1), parts.select(2, 2)
    scores = q @ k.transpose(-2, -1) * (width // heads) ** -0.5
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, scores)
    if key_padding_mask is not None:
        scores = scores + _additive(key_padding_mask, scores)[:, None, None, :]
    weights = torch.softmax(scores, -1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, length, width)
    shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
    return F.linear(mixed, module.out_proj.weight, module.out_proj.bias), shown


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of truths or of numbers as what is added to the scores."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


MULTIHEAD_ATTENTION = ModuleRule(nn.MultiheadAttention, forward, refuse)
