"""What a loss's rule draws: columns whose second moment is the Hessian, of each sample by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.rule import LossRule, Op

DRAWS = 40_000
REPEATED = 300
"""How often a single draw is asked for."""
SPREADS = 6
"""Within so many standard errors a mean is what is expected."""


def check_sampled(rule: LossRule, op: Op, hessian: Tensor, where: str) -> None:
    """Many draws at once, and one at a time, of each sample; no two samples draw the same."""
    if rule.sample is None:
        return
    many = rule.sample(op, DRAWS).flatten(2) * DRAWS**0.5
    spread = (torch.einsum("nka,nkb->nab", many**2, many**2) / DRAWS).sqrt()
    _check_moment(many, hessian, spread, f"{where}: samples' second moment misses the Hessian")
    single = torch.stack([rule.sample(op, 1).flatten(1) for _ in range(REPEATED)], 1)
    assert single.isfinite().all(), f"{where}: one draw (mc_samples=1) is not finite"
    _check_moment(single, hessian, spread, f"{where}: the second moment of one draw misses the Hessian")
    if len(many) > 1:
        products = torch.einsum("ka,kb->kab", many[0], many[1])
        excess = products.mean(0).abs() - SPREADS * products.std(0) / DRAWS**0.5 - 1e-9
        assert (excess <= 0).all(), f"{where}: two samples draw the same numbers"


def _check_moment(drawn: Tensor, hessian: Tensor, spread: Tensor, words: str) -> None:
    """Of [N, M, h], each drawn by itself. The spread is that of many: few may lack what is drawn rarely."""
    draws = drawn.shape[1]
    outer = torch.einsum("nka,nkb->nab", drawn, drawn) / draws
    excess = (outer - hessian).abs() - SPREADS * spread / draws**0.5 - 1e-9
    assert (excess < 0).all(), f"{words} by {excess.max():.2e}"
