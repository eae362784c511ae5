"""Context: the loss, what the user has added, the step size, quantities of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hbpcompiler.report.instruments.instrument import Drawn, Instrument, Line, drawn_lines
from hbpcompiler.report.instruments.step_size import first_and_recent
from hbpcompiler.report.tracks import NOTHING, Track
from hbpcompiler.report.verdicts.general import course
from hbpcompiler.report.words import Verdict, number

KNOWN = frozenset({
    "loss", "lr", "norm_test", "inner_test", "ortho_test", "alpha", "tic_diag", "tic_trace", "hess_max_ev", "mean_gsnr",
    "cabs", "early_stopping", "grad_norm", "distance", "update_size", "hess_trace", "parameter_norm", "grad_hist_1d",
    "grad_hist_2d", "time",
})
"""Quantities that have an instrument, or a place in another one."""


def _loss(track: Track) -> Drawn | None:
    loss = track.series("loss")
    verdict = Verdict(f"loss {course(*first_and_recent(loss))}") if len(loss.finite) else None
    return drawn_lines([loss], [verdict])


def _step_size(track: Track) -> Drawn | None:
    lr, smallest = track.rates()
    if not len(lr):
        return None
    optimizer = track.optimizer.get("name", "")
    others = [f"{name} {value}" for name, value in track.optimizer.items()
              if name not in ("name", "lr") and isinstance(value, int | float) and value]
    first, last = lr.values[0].item(), lr.values[-1].item()
    said = f"step size {number(last)}" + ("" if first == last else f" now, {number(first)} at first")
    differ = bool((lr.values != smallest.values).any())
    if differ:
        said = f"step sizes from {number(smallest.values[-1].item())} to {number(last)} in the optimizer's groups"
    verdict = Verdict(", ".join([f"{optimizer} {said}".strip(), *others]))
    return drawn_lines([lr, smallest if differ else NOTHING], [verdict])


def of_ones_own(tracks: Sequence[Track]) -> list[Instrument]:
    """An instrument for each number that has none: what was added, and quantities of the user's."""
    names = dict.fromkeys(name for track in tracks for name in track.names if name not in KNOWN)
    numbers = [name for name in names if any(len(track.series(name)) for track in tracks)]
    return [Instrument(f"own-{index}", name, (name,), "A number of your own; where it is one by "
                       "parameter, the root of the sum of squares.",
                       "series", _drawing(name), (Line(name),), {"log": True}) for index, name in enumerate(numbers)]


def _drawing(name: str) -> Callable[[Track], Drawn | None]:
    def draw(track: Track) -> Drawn | None:
        series = track.series(name)
        finite = series.finite.values
        verdict = Verdict(course(finite[0].item(), finite[-1].item(), "now")) if len(finite) else None
        return drawn_lines([series], [verdict])
    return draw


CONTEXT = (
    Instrument("loss", "Loss", ("loss",), "Of the mini-batch, as it is minimized.", "series", _loss, (Line("loss"),),
               {"log": True}),
    Instrument("lr", "Step size", ("lr",), "As the optimizer has it at each step, and its other settings.", "series",
               _step_size,
               (Line("step size", role="stairs"), Line("smallest step size of a group", role="stairs")), {"log": True}),
)
