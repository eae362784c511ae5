"""The sweeps of `scale` as curves: measured beside predicted, a row of panels per family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from .growth import AXES, QUANTITIES, Row, Sweep
from .memory import MEBI

COLOURS = dict(zip(QUANTITIES, ("#0b6e99", "#d9822b"), strict=True))
Curve = Callable[[Row, str], float | None]


def draw(found: Sequence[tuple[Sweep, Sequence[Row]]], path: Path) -> None:
    """For each sweep the multiple of the gradient's time, and below it the peak memory. Dashed: predicted."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(AXES), len(found))
    rows = 2 * -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (sweep, points) in enumerate(found):
        above, column = 2 * (number // columns), number % columns
        _panel(axes[above][column], sweep, points, "time / gradient's", lambda row, name: row.multiple(name),
               lambda row, name: row.predicted_multiple(name))
        _panel(axes[above + 1][column], sweep, points, "peak MiB", lambda row, name: (row.peak(name) or 0) / MEBI,
               lambda row, name: row.predicted_bytes[name] / MEBI)
        axes[above][column].set_title(sweep.title, fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, sweep: Sweep, rows: Sequence[Row], what: str, measured: Curve, predicted: Curve) -> None:
    axis.set_axis_on()
    for name, colour in COLOURS.items():
        for label, curve, style in (("measured", measured, "o-"), ("predicted", predicted, "--")):
            points = [(row.point.size, value) for row in rows if (value := curve(row, name))]
            places = [size for size, _ in points], [value for _, value in points]
            axis.plot(*places, style, color=colour, label=f"{name}, {label}", lw=1.2, ms=4)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    sizes = [row.point.size for row in rows]
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xlabel(sweep.axis, fontsize=8)
    axis.set_ylabel(what, fontsize=8)
