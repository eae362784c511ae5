"""The table as a picture: a panel per network, bars as multiples of the gradient's time, as in the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

if TYPE_CHECKING:
    from .compare import Result

COLOURS = ("#0b6e99", "#d9822b", "#7a9e3c", "#8e5ba6", "#888888", "#444444")


def draw(results: Sequence[Result], names: Sequence[str], path: Path) -> None:
    """One panel per group of the table and network; a cell is a cluster of bars, the reach a tick across it."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[Result]] = {}
    for result in results:
        title = result.cell.group.split(" (")[0]
        panels.setdefault(f"{result.cell.title}\n{title}", []).append(result)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, cells) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, title, cells, names)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, title: str, cells: Sequence[Result], names: Sequence[str]) -> None:
    width = 0.8 / len(names)
    for offset, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        places, heights, below, above = [], [], [], []
        for place, result in enumerate(cells):
            height = result.ratio(name)
            if height is None:
                continue
            low, high = (quartile / result.gradient.median for quartile in result.others[name].quartiles)
            places.append(place + (offset - (len(names) - 1) / 2) * width)
            heights.append(height)
            below.append(height - low)
            above.append(high - height)
        axis.bar(places, heights, width, color=colour, label=name, yerr=[below, above], error_kw={"lw": 0.8})
    for place, result in enumerate(cells):
        if result.cell.reach is not None:
            axis.hlines(result.cell.reach, place - 0.45, place + 0.45, colors="black", lw=1, ls=":")
    axis.axhline(1, color="black", lw=0.6)
    axis.set_yscale("log")
    axis.set_xticks(range(len(cells)), [result.cell.what.replace(" + ", "\n+ ") for result in cells], fontsize=8,
                    rotation=20)
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("time / gradient's", fontsize=8)
