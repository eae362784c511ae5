"""nn.EmbeddingBag on indices [N, length], traced as an embedding and a sum, mean or maximum over each bag."""

from __future__ import annotations

from typing import Any

from torch import nn

from hbpcompiler.rule import ModuleRule, Tensor
from hbpcompiler.rules.shared.bags import of_bags


def refuse(module: nn.EmbeddingBag) -> str | None:
    if module.max_norm is not None:
        return ("max_norm changes the weight in the forward pass; leave it out, and do the same before each call: with "
                "torch.no_grad(): torch.embedding_renorm_(bag.weight, indices.flatten(), max_norm, 2.0)")
    if module.scale_grad_by_freq:
        return "scale_grad_by_freq=True divides by how often an index occurs in the batch, which mixes the samples"
    return None


def forward(module: Any, input: Tensor, offsets: Tensor | None = None,
            per_sample_weights: Tensor | None = None) -> Tensor:
    if input.dim() != 2 or offsets is not None:
        raise NotImplementedError("bags of different lengths in one row of indices have no sample axis; give "
                                  "nn.EmbeddingBag a padding_idx and indices [N, length] filled up with it: torch."
                                  "nn.utils.rnn.pad_sequence(indices.tensor_split(offsets[1:]), batch_first=True, "
                                  "padding_value=padding_idx)")
    return of_bags(input, module.weight, module.mode, module.padding_idx, per_sample_weights)


EMBEDDING_BAG = ModuleRule(nn.EmbeddingBag, forward, refuse)
