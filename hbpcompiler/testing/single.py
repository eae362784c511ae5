"""A rule in float32: what it makes is of that dtype, and near what it makes in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule import Case, Diagonal, Factor, Rule
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.setting import SAMPLES, Setting

TOLERANCE = 1e-3
"""Of the greatest number: rounding stays far below, and what is made of other numbers is far above."""


@dataclass(frozen=True)
class Made:
    """What a rule has made, and of what dtype torch makes it."""

    words: str
    found: Any
    dtype: torch.dtype


def check_single(rule: Rule, operation: str, case: Case, where: str) -> None:
    """Value, columns back and residual."""
    low, high = (_made(rule, operation, case, dtype) for dtype in (torch.float32, torch.float64))
    for one, other in zip(low, high, strict=True):
        at = f"{where}, in float32: {one.words}"
        assert isinstance(one.found, Tensor), f"{at}: {one.found!r}, which is no tensor"
        assert one.found.dtype == one.dtype, f"{at}: dtype {one.found.dtype}, not {one.dtype}"
        there = other.found.isfinite()
        error = torch.where(there, one.found.to(other.found.dtype) - other.found, 0).abs()
        scale = 1 + torch.where(there, other.found, 0).abs().amax() if other.found.numel() else 1.0
        assert (error <= TOLERANCE * scale).all(), f"{at}: off by {error.max():.1e}"


def _made(rule: Rule, operation: str, case: Case, dtype: torch.dtype) -> list[Made]:
    seed_cpu(0)
    setting = Setting(rule, operation, case, dtype)
    op, output = setting.op(), setting.reference()
    if torch.Tag.nondeterministic_seeded in setting.overload.tags:  # other numbers are drawn for another dtype
        return []
    made = [Made("forward", op.output, output.dtype)]
    if not output.is_floating_point():
        return made
    seed_cpu(0)
    columns = torch.randn(SAMPLES, 2, *op.shape("output"), dtype=torch.float64).to(output.dtype)
    for name, i in setting.inputs(setting.active()):
        found = rule.jac_t[name](op, columns, *([] if i is None else [i]))
        made.append(Made(f"jac_t of {name}", found, setting.tensor(name, i).dtype))
    residual = rule.residual_of(op)
    if isinstance(residual, Diagonal):
        made.append(Made("residual", residual.diagonal(op, columns[:, 0]), output.dtype))
    elif isinstance(residual, Factor):
        factors, signs = residual.factor(op, columns[:, 0])
        for name, found in factors.items():
            weights = torch.ones((), dtype=found.dtype) if signs is None else signs.reshape(
                *signs.shape, *[1] * (found.dim() - 2))
            # Which columns there are may turn with a rounding; what they make together does not.
            made.append(Made(f"residual's columns at {name}", found.square().mul(weights).sum(1), output.dtype))
    return made
