"""What is drawn of a series: every value of a short one; of a long one groups of neighbours, each with its extremes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.report.tracks import Series

POINTS = 500
"""Most values that are drawn each as a dot."""
GROUPS = 300
"""Groups of neighbours into which more are gathered."""
SMOOTHING = 0.2
"""Weight of a new value in a moving average, as Cockpit's; more where there are fewer than a hundred values."""
ROBUST = (0.02, 0.98)
"""Quantiles that an axis shows; what lies beyond is an arrow at its edge."""
FEW = 10
"""Values that are all shown."""
BEGINNING = 2.0
"""Lengths of the axis by which it may grow to show the first value."""
NEIGHBOURS = 5
"""Values whose median says where a short series is."""
SMOOTHED = 40
"""Values from which on the line is a moving average; of fewer it goes through them."""
MARKS = 12
"""Most marks for values that are not finite."""


def curve(series: Series) -> dict[str, Any]:
    """A series for the page: dots and their moving average, or quantiles of groups; its robust range; what is not
    finite, by step.

    Extremes are never lost: a group keeps its least and its largest value.
    """
    finite = series.finite
    drawn = _dots(finite) if len(finite) <= POINTS else _groups(finite)
    positive = bool(len(finite)) and finite.values.min().item() > 0
    return drawn | {"range": robust_range(finite.values), "positive": positive, "count": len(series),
                    "notFinite": _not_finite(series)}


def _dots(series: Series) -> dict[str, Any]:
    line = moving(series.values) if len(series) >= SMOOTHED else series.values
    return {"steps": series.steps.tolist(), "values": plain(series.values), "smooth": plain(line)}


def _groups(series: Series) -> dict[str, Any]:
    steps = [group[len(group) // 2].item() for group in series.steps.tensor_split(GROUPS)]
    first = [group[0].item() for group in series.steps.tensor_split(GROUPS)]
    last = [group[-1].item() for group in series.steps.tensor_split(GROUPS)]
    at = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64, device="cpu")
    quantiles = torch.stack([torch.quantile(group, at) for group in series.values.tensor_split(GROUPS)], dim=1)
    low, first_quarter, median, third_quarter, high = map(plain, quantiles)
    return {"steps": steps, "from": first, "to": last, "low": low, "quarter": first_quarter, "median": median,
            "threeQuarters": third_quarter, "high": high}


def moving(values: Tensor) -> Tensor:
    """The mean [S] of two exponential moving averages, of what came before and of what comes after: it does not lag."""
    weight = max(SMOOTHING, min(1.0, 100 * SMOOTHING / max(len(values), 1)))
    return (_averaged(values, weight) + _averaged(values.flip(0), weight).flip(0)) / 2


def _averaged(values: Tensor, weight: float) -> Tensor:
    smooth, found = math.nan, []
    for value in values.tolist():
        smooth = value if math.isnan(smooth) else weight * value + (1 - weight) * smooth
        found.append(smooth)
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def robust_range(values: Tensor) -> list[float] | None:
    """What an axis has to show: all that medians of neighbours reach, quantiles, the last value; None of no values.

    Trends and levels are shown whole, and a few values far out do not stretch it. The first value, of a loss, say, is
    shown as well unless that would make the axis three times as long.
    """
    if not len(values):
        return None
    shown = [values.min(), values.max()]
    if len(values) > FEW:
        neighbours = values.tensor_split(GROUPS) if len(values) > POINTS else values.unfold(0, NEIGHBOURS, 1)
        medians = torch.stack([group.median() for group in neighbours])
        shown = [medians.min(), medians.max(), torch.quantile(values, ROBUST[0], interpolation="higher"),
                 torch.quantile(values, ROBUST[1], interpolation="lower"), values[-1]]
    low, high, first = min(shown).item(), max(shown).item(), values[0].item()
    if low - BEGINNING * (high - low) <= first <= high + BEGINNING * (high - low):
        low, high = min(low, first), max(high, first)
    return [low, high]


def _not_finite(series: Series) -> dict[str, Any] | None:
    """None where all is; else how many are not, from which step on, and where, thinned out."""
    steps = series.steps[~torch.isfinite(series.values)]
    if not len(steps):
        return None
    evenly = steps[:: math.ceil(len(steps) / MARKS)].tolist()
    last = [] if steps[-1].item() == evenly[-1] else [steps[-1].item()]
    return {"count": len(steps), "first": steps[0].item(), "steps": evenly + last}


def plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON with six significant digits; None for what is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
