"""Tensors that programs cannot compute with."""

from __future__ import annotations

import torch
from torch import Tensor


def not_dense(tensor: Tensor) -> str:
    """What a tensor is and what to do about it, if it is not dense; otherwise nothing."""
    if tensor.is_nested:
        return "a nested tensor; pad it: torch.nested.to_padded_tensor(x, 0.0)"
    if tensor.is_quantized:
        return "a quantized tensor; write x.dequantize()"
    if tensor.layout is not torch.strided:
        return f"a sparse tensor, {tensor.layout}; write x.to_dense()"
    return ""
