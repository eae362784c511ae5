"""Curves as in the paper's figures 7, 10 and 11: medians with shaded quartiles, over epochs and over seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.methods import METHODS
from benchmarks.training.results import Numbers, Outcome, accuracies, curve, losses
from benchmarks.training.seconds import Cost

PANELS = (("training loss", losses, "train"), ("test loss", losses, "test"),
          ("training accuracy", accuracies, "train"), ("test accuracy", accuracies, "test"))


def draw(title: str, outcomes: Mapping[str, Outcome], costs: Mapping[str, Cost], path: Path) -> None:
    """Four panels over epochs, and under them the same over time for those whose epochs have been timed.

    A line ends where most runs have diverged. The quartiles of one of which more than a quarter went astray are left
    out: they would cover all others, and the table has them.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    rows = 2 if costs else 1
    figure, axes = plt.subplots(rows, len(PANELS), figsize=(16, 3.5 * rows + 0.8), squeeze=False, layout="constrained")
    for column, (label, values, part) in enumerate(PANELS):
        for method, outcome in outcomes.items():
            alive = np.isfinite(curve(losses(outcome.records, "train", outcome.epochs)).median)
            numbers = values(outcome.records, part, outcome.epochs)[:, alive]
            epochs = np.arange(outcome.epochs + 1, dtype=float)[alive]
            shaded = outcome.astray <= len(outcome.records) / 4
            _line(axes[0][column], epochs, numbers, method, shaded)
            if method in costs:
                _line(axes[1][column], epochs[1:] * costs[method].median, numbers[:, 1:], method, shaded)
        for row in axes:
            _finish(row[column], label)
        if values is losses:
            start = max(float(curve(losses(each.records, part, each.epochs)).median[0]) for each in outcomes.values())
            for row in axes:
                row[column].set_yscale("log")
                row[column].set_ylim(top=2 * start)  # what is far above the beginning says nothing
        axes[0][column].set_xlabel("epoch")
        axes[0][column].xaxis.set_major_locator(MaxNLocator(integer=True))
        if rows == 2:
            axes[1][column].set_xlabel("processor seconds of the steps")
            axes[1][column].set_xscale("log")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _line(axis: Any, places: Numbers, numbers: Numbers, method: str, shaded: bool) -> None:
    """Infinite values are not drawn."""
    found, look = curve(numbers), METHODS[method]
    finite = np.isfinite(found.median)
    high = np.where(np.isfinite(found.high), found.high, found.median)
    axis.plot(places[finite], found.median[finite], color=look.colour, lw=1.5, label=look.title,
              ls="-" if look.curvature else "--")
    if shaded:
        axis.fill_between(places[finite], found.low[finite], high[finite], color=look.colour, alpha=0.2, lw=0)


def _finish(axis: Any, label: str) -> None:
    axis.set_title(label, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
