"""nn.MultiheadAttention, traced through an equivalent that leaves the sample axis in front.

torch's own forward moves it behind the positions. Self-attention and attention between sequences, of one or several
widths, with batch_first or without, with a trained or zero position of its own (add_bias_kv, add_zero_attn).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hbpcompiler.rule import ModuleRule, Tensor


def refuse(module: nn.MultiheadAttention) -> str | None:
    if module.dropout and module.training:
        return ("dropout inside the attention is not supported in train mode; use dropout=0.0, or call eval() on that "
                "module")
    return None


def forward(module: Any, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
            need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
            is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
    itself = query is key and key is value
    if not module.batch_first:
        query = query.transpose(0, 1)
        key, value = (query, query) if itself else (key.transpose(0, 1), value.transpose(0, 1))
    width = query.shape[-1] // module.num_heads
    q, k, v = _of_one_sequence(module, query) if itself else _of_several(module, query, key, value)
    k, v = _with_own_position(module, k, module.bias_k), _with_own_position(module, v, module.bias_v)
    more = k.shape[2] - key.shape[1]
    scores = q @ k.transpose(-2, -1) * width**-0.5
    if attn_mask is not None:
        mask = attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (-1, module.num_heads))
        scores = scores + _shown_at_the_end(_additive(mask, scores), more)
    if key_padding_mask is not None:
        scores = scores + _shown_at_the_end(_additive(key_padding_mask, scores), more)[:, None, None, :]
    masked = attn_mask is not None or key_padding_mask is not None
    # torch's attention gives zeros where all is masked, unless its weights are asked for, which are NaN there.
    weights = torch._safe_softmax(scores, -1) if masked and not need_weights else torch.softmax(scores, -1)
    mixed = F.linear((weights @ v).transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
    shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
    return mixed if module.batch_first else mixed.transpose(0, 1), shown


def _of_one_sequence(module: Any, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value [N, heads, T, E / heads] of self-attention: one product gives all three."""
    if module.in_proj_weight is None:
        return _of_several(module, sequence, sequence, sequence)
    projected = F.linear(sequence, module.in_proj_weight, module.in_proj_bias)
    # [N, T, 3 E] -> three times [N, heads, T, E / heads]
    parts = projected.unflatten(2, (3, module.num_heads, -1)).transpose(1, 3)
    return parts.select(2, 0), parts.select(2, 1), parts.select(2, 2)


def _of_several(module: Any, *sequences: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of different sequences: each has its part of the weight, or its own."""
    if module.in_proj_weight is None:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    else:
        weights = module.in_proj_weight.chunk(3)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = (F.linear(sequence, weight, bias).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
               for sequence, weight, bias in zip(sequences, weights, biases, strict=True))
    return q, k, v


def _with_own_position(module: Any, sequence: Tensor, trained: Tensor | None) -> Tensor:
    """Keys or values [N, heads, T, E / heads], then the trained one of add_bias_kv, then the zeros of add_zero_attn."""
    one = (sequence.shape[0], -1, -1, -1)
    parts = [sequence]
    if trained is not None:
        parts.append(trained.reshape(1, module.num_heads, 1, -1).expand(one))
    if module.add_zero_attn:
        parts.append(torch.zeros_like(sequence[:, :, :1]))
    return torch.cat(parts, 2) if len(parts) > 1 else sequence


def _shown_at_the_end(mask: Tensor, positions: int) -> Tensor:
    """What is added to the scores, with nothing for these last positions."""
    return F.pad(mask, (0, positions)) if positions else mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of truths or of numbers as what is added to the scores."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


MULTIHEAD_ATTENTION = ModuleRule(nn.MultiheadAttention, forward, refuse)
