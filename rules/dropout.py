"""Dropout in train mode: the mask drawn in the forward pass, scaled by 1/(1-p), is the local derivative.

torch itself takes the other dropouts (of channels, alpha) apart into a random mask and arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor


def draws(op: Op) -> bool:
    """aten.native_dropout may be told nothing about the mode, which means train mode."""
    return op.train is not False and op.p > 0


def forward(op: Op) -> Any:
    """The mask is drawn as nn.Dropout draws it: with one seed, the outputs are the same."""
    if not draws(op):
        return op.input
    if not op.differentiated:
        return F.dropout(op.input, op.p, True)
    mask = F.dropout(torch.ones_like(op.input), op.p, True)
    return op.input * mask, {"mask": mask}


def derivative(op: Op) -> Tensor:
    mask: Tensor = op.mask if draws(op) else torch.ones_like(op.input)
    return mask


RULE = Rule(
    operations=["aten.native_dropout", "aten.dropout"],
    forward=forward,
    residual=ZERO,
    formula="S * mask,  mask = 0 or 1 / (1 - p)",
    structure=Structure.ELEMENTWISE,
    derivative=derivative,
    merged=True,
    cases=[
        Case({"input": (4, 3)}, {"p": 0.5, "train": True}),
        Case({"input": (3, 2, 2)}, {"p": 0.1, "train": True}),
        Case({"input": (4,)}, {"p": 1.0, "train": True}),
        Case({"input": (4,)}, {"p": 0.0, "train": True}),
        Case({"input": (4,)}, {"p": 0.5, "train": False}),
    ],
)
