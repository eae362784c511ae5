"""`WeightedLoss`: the loss of samples with weights, as a function that a generated file defines by the losses l_n."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.rule.composite import Composite

LOSSES, WEIGHTED = "sample_losses", "weighted_loss"


class WeightedLoss(Composite):
    """(loss, sample_weights or None, what `losses` reads) -> sum_n w_n l_n, over N for a mean.

    Without weights it is the loss as it was computed, and so it is, to the bit, with weights of one.
    """

    def __init__(self, losses: Composite, kind: str, dtype: torch.dtype) -> None:
        total = "sum_n w_n l_n" if kind == "sum" else "(1/N) sum_n w_n l_n"
        super().__init__(WEIGHTED, fx.Graph(), (), (), dtype, False,
                         f"{total}; without weights, or if all are 1, the loss as it is.")
        self.losses, self.kind = losses, kind

    def __call__(self, loss: Any, sample_weights: Any, *tensors: Any) -> Any:
        if isinstance(loss, fx.Proxy):
            return loss.tracer.create_proxy("call_function", self, (loss, sample_weights, *tensors), {})
        if sample_weights is None:
            return loss
        losses: Tensor = self.losses(*tensors)
        each = losses * sample_weights.type_as(losses)
        total = each.sum() if self.kind == "sum" else each.mean()
        return torch.where((sample_weights == 1).all(), loss, total.type_as(loss))
