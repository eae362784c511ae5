"""The column of curvature: the sharpest direction, the trace, the criterion of Takeuchi."""

from __future__ import annotations

import torch

from hbpcompiler.report.instruments.instrument import Drawn, Instrument, Line, drawn_lines
from hbpcompiler.report.instruments.step_size import first_and_recent
from hbpcompiler.report.tracks import Series, Track
from hbpcompiler.report.verdicts import curvature


def _sharpness(track: Track) -> Drawn | None:
    sharpest = track.series("hess_max_ev")
    if not len(sharpest):
        return None
    edges = edge_by_step(track, sharpest)
    verdict = None
    if len(sharpest.recent):
        step = sharpest.finite.steps[-1:]
        edge = curvature.edge_of_stability(track.optimizer, _step_size(track, step)[0].item())
        verdict = curvature.sharpness(sharpest.recent.median().item(), edge)
    return drawn_lines([sharpest, edges], [verdict])


def edge_by_step(track: Track, series: Series) -> Series:
    """The edge of stability at the steps of a series; nothing for optimizers that have none."""
    found = [(step, curvature.edge_of_stability(track.optimizer, lr)) for step, lr in
             zip(series.steps.tolist(), _step_size(track, series.steps).tolist(), strict=True)]
    kept = [(step, edge[0]) for step, edge in found if edge is not None]
    return Series(torch.tensor([step for step, _ in kept], dtype=torch.int64, device="cpu"),
                  torch.tensor([edge for _, edge in kept], dtype=torch.float64, device="cpu"))


def _step_size(track: Track, steps: torch.Tensor) -> torch.Tensor:
    """As tracked; as the header has it where it was not; nan where the optimizer's groups differ in it."""
    largest, smallest = track.rates()
    if len(largest):
        found = largest.at(steps)
        return torch.where(found == smallest.at(steps), found, torch.nan)
    lr = track.optimizer.get("lr")
    known = float(lr) if isinstance(lr, int | float) else float("nan")
    return torch.full((len(steps),), known, dtype=torch.float64, device="cpu")


def _trace(track: Track) -> Drawn | None:
    trace, sharpest = track.series("hess_trace"), track.series("hess_max_ev").recent
    verdict = None
    if len(trace.recent):
        verdict = curvature.mean_curvature(trace.recent.median().item(), sum(track.sizes.values()) or None,
                                           sharpest.median().item() if len(sharpest) else None)
    return drawn_lines([trace], [verdict])


def _takeuchi(track: Track) -> Drawn | None:
    both = [track.series("tic_diag"), track.series("tic_trace")]
    diagonal, trace = (first_and_recent(series) if len(series.finite) else None for series in both)
    return drawn_lines(both, [curvature.takeuchi(diagonal, trace)])


CURVATURE = (
    Instrument(
        "hess_max_ev", "Sharpest direction", ("hess_max_ev",),
        "The largest eigenvalue of the Hessian; dashed, in the colour of the run: the curvature above which steps of "
        "this size overshoot, 2 / step size of plain gradient descent. Full-batch training tends to settle there; "
        "small batches settle below.",
        "series", _sharpness, (Line("largest eigenvalue"), Line("edge of stability", role="edge")), {"log": True}),
    Instrument(
        "hess_trace", "Trace of the Hessian", ("hess_trace",),
        "The sum of all curvatures. Beside the sharpest direction it tells how unevenly the loss is curved; it tells "
        "regularized from unregularized runs at equal loss.",
        "series", _trace, (Line("trace"),), {"log": True}),
    Instrument(
        "tic", "Takeuchi's criterion", ("tic_diag", "tic_trace"),
        "Noise of the gradients over curvature. Near a minimum it estimates the gap between the losses of training and "
        "of new data.",
        "series", _takeuchi, (Line("diagonal"), Line("trace", "right", "second")), {"log": True}),
)
