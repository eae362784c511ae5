"""Alpha: where a step lands in the parabola that losses and slopes at its two ends say (Cockpit, section 2.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOOR = 1e-12
"""Of the squares of what is observed: the variance of what has none."""


class End(NamedTuple):
    """What the samples say at one end of a step d: l_n and g_n . d, [N] each."""

    losses: Tensor
    slopes: Tensor


def alpha(start: End, end: End) -> float | None:
    """T / x_min - 1 of a parabola over the step, 0 at its start and T at its end; -1 where it has no minimum.

    -1: stayed at the start; 0: stepped to the minimum; 1: as high on the other side; more: uphill. The parabola is
    the weighted least-squares fit to the mean losses and mean slopes at both ends, each weighed by 1 over its variance,
    that of the samples over their number.
    """
    ends = (start, end)
    values = torch.stack([part.double().mean().cpu() for part in (start.losses, end.losses, start.slopes, end.slopes)])
    if not values.isfinite().all():
        return None
    variances = torch.stack([_variance_of_mean(part) for part in (*(one.losses for one in ends),
                                                                  *(one.slopes for one in ends))])
    squares = values.square()
    scale = torch.stack([squares[:2].sum(), squares[:2].sum(), squares[2:].sum(), squares[2:].sum()])
    variances = variances + FLOOR * scale + torch.finfo(torch.float64).tiny
    roots = (variances.min() / variances).sqrt()
    # In units of the step: f(0), f(1), f'(0), f'(1) of w0 + w1 u + w2 u^2.
    rows = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]], dtype=torch.float64, device="cpu")
    weights = torch.linalg.lstsq(roots.unsqueeze(1) * rows, (roots * values).unsqueeze(1)).solution.flatten()
    _, slope, bend = weights.tolist()
    if bend <= 0:
        return -1.0
    return -2 * bend / slope - 1 if slope else float("inf")


def _variance_of_mean(samples: Tensor) -> Tensor:
    """Zero for one sample."""
    samples = samples.double().cpu()
    return samples.var() / len(samples) if len(samples) > 1 else torch.zeros((), dtype=torch.float64, device="cpu")
