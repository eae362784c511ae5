"""KFRA: the loss Hessian averaged over the batch, where the model ends."""

from __future__ import annotations

import math
from typing import Any

import torch

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.plan.steps import Average
from hbpcompiler.compiler.routes import COLUMNS


def average(backward: Backward, step: Average) -> None:
    """Pieces of any form as one matrix [h, h], the mean over the samples."""
    total: Any = None
    for piece in step.pieces:
        lead = (-1, piece.columns) if piece.form == COLUMNS else (-1,)
        arrived = backward.columns[step.value.name, piece.name].reshape(*lead, math.prod(step.value.sample_shape))
        if piece.form == COLUMNS:
            weighted = arrived * backward.signs[piece.name].unsqueeze(2) if piece.signed else arrived
            part = torch.einsum("nka,nkb->ab", weighted, arrived) / backward.batch
        else:
            part = torch.diag_embed(arrived.mean(0))
        total = part if total is None else total + part
    backward.arrive(step.value, step.into, total)
