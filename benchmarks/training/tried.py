"""The page's tables of what was tried: each optimizer's grid, each task's network, batches and epochs."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.training.methods import METHODS
from benchmarks.training.tasks import ALL

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
SYMBOLS = {"lr": ALPHA, "damping": "λ", "momentum": "μ", "beta1": "β₁"}


def of_tasks(tasks: Iterable[str]) -> list[str]:
    """A row a task; of all optimizers the same."""
    lines = ["| task | parameters of the network | samples of a batch | epochs |", "|---|---|---|---|"]
    for task in tasks:
        made = ALL[task]
        count = sum(parameter.numel() for parameter in made.model(0).parameters())
        lines.append(f"| {made.title} | {count:,} | {made.batch} | {made.epochs} |")
    return lines


def of_grids(methods: Iterable[str]) -> list[str]:
    """A row for each grid that there is, all of whose combinations are its points."""
    titles: dict[str, list[str]] = {}
    for method in methods:
        grid = METHODS[method].grid
        text = "; ".join(f"{SYMBOLS.get(name, name)} {', '.join(f'{value:g}' for value in values)}"
                         for name, values in grid.items())
        points = len(METHODS[method].points(coarse=False))
        titles.setdefault(f"{text} | {points}", []).append(METHODS[method].title)
    return ["| optimizers | values tried, in all combinations | points |", "|---|---|---|",
            *(f"| {'; '.join(found)} | {grid} |" for grid, found in titles.items())]
