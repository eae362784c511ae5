"""The column of the step size: alpha, distances, the norm of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.report.curves import plain
from hbpcompiler.report.instruments.instrument import Drawn, Instrument, Line, broken, drawn_lines
from hbpcompiler.report.tracks import Series, Track
from hbpcompiler.report.verdicts import step_size
from hbpcompiler.report.words import Verdict, number

SIDE = 2.0
"""The parabola is drawn for alpha between -2 and 2; what lies beyond is counted there."""
BINS = 40
KERNEL = 0.08
"""Least width of the kernels of the density, in units of alpha."""


def _alpha(track: Track) -> Drawn | None:
    series = track.series("alpha")
    values, recent = series.finite.values, series.recent
    if not len(values):
        return None
    edges = torch.linspace(-SIDE, SIDE, BINS + 1, dtype=torch.float64, device="cpu")
    grid = torch.linspace(-SIDE, SIDE, 161, dtype=torch.float64, device="cpu")
    data = {
        "grid": plain(grid), "all": plain(density(values, grid)), "recent": plain(density(recent, grid)),
        "counts": torch.histc(values[(values >= -SIDE) & (values <= SIDE)], BINS, -SIDE, SIDE).tolist(),
        "edges": plain(edges), "below": int((values < -SIDE).sum()), "above": int((values > SIDE).sum()),
        "median": plain(values.median()[None])[0], "recentMedian": plain(recent.median()[None])[0],
        "count": len(values), "recentCount": len(recent),
    }
    rates = track.series("lr").finite.values
    rate = float(rates[-1] / rates.max()) if len(rates) and rates.max() > 0 else 1.0
    said = (broken(series), step_size.alpha(recent, rate))
    return Drawn(data, tuple(verdict for verdict in said if verdict is not None))


def density(values: Tensor, grid: Tensor) -> Tensor:
    """Gaussian kernels of Silverman's width around the values that the grid covers, their share of all as the area.

    Args:
        values: [S] finite.
        grid: [G] increasing; values beyond its ends are left out.
    """
    covered = values[(values >= grid[0]) & (values <= grid[-1])]
    if not len(covered):
        return torch.zeros_like(grid)
    spread = covered.std().item() if len(covered) > 1 else 0.0
    width = max(KERNEL, 1.06 * spread * len(covered) ** -0.2)
    total = torch.zeros_like(grid)
    for part in covered.split(4096):
        total += torch.exp(-0.5 * ((grid[:, None] - part) / width) ** 2).sum(1)
    return total / (len(values) * width * (2 * torch.pi) ** 0.5)


def _distance(track: Track) -> Drawn | None:
    distance, update = track.series("distance"), track.series("update_size")
    verdict = None
    if len(distance.finite):
        verdict = Verdict(f"{number(distance.finite.values[-1].item())} from the start")
    elif len(update.finite):
        verdict = Verdict(f"updates of size {number(update.recent.median().item())}")
    if len(distance.finite) and len(update.finite):
        length, steps = step_size.path_length(update.finite.values, int(update.steps[0]), int(update.steps[-1]))
        verdict = step_size.distance(distance.finite.values[-1].item(), length, steps)
    return drawn_lines([distance, update], [verdict])


def _gradient_norm(track: Track) -> Drawn | None:
    norm = track.series("grad_norm")
    verdict = step_size.gradient_norm(*first_and_recent(norm)) if len(norm.finite) else None
    return drawn_lines([norm], [verdict])


def first_and_recent(series: Series) -> tuple[float, float]:
    """The first finite value, and the median of the last ones."""
    return series.finite.values[0].item(), series.recent.median().item()


STEP_SIZE = (
    Instrument(
        "alpha", "Step against the valley (alpha)", ("alpha",),
        "A parabola is fitted along each step to losses and slopes at both of its ends. -1 did not move, 0 went to the "
        "lowest point, 1 to the other side at the same height, more than 1 uphill. Grey: all steps; in colour: the "
        "last tenth. Good step sizes often lie slightly above 0, so 0 is no target.",
        "alpha", _alpha),
    Instrument(
        "distance", "Distance and updates", ("distance", "update_size"),
        "Distance from the first parameters (left) and size of each update (right). Large updates without distance: "
        "the parameters oscillate. Neither: training stalls.",
        "series", _distance, (Line("distance"), Line("size of the update", "right", "second")), {"log": True}),
    Instrument(
        "grad_norm", "Norm of the gradient", ("grad_norm",),
        "Of the mini-batch, over all parameters. Small updates with a large norm: the step size is tiny; with a small "
        "norm: a plateau or a minimum.",
        "series", _gradient_norm, (Line("norm"),), {"log": True}),
)
