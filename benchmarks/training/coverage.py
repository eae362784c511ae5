"""How much of the protocol the figures on the page come from, in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from benchmarks.training.methods import METHODS
from benchmarks.training.page import Row
from benchmarks.training.tasks import PAPER


def sentences(rows: Sequence[Row], asked: Mapping[str, Sequence[str]]) -> list[str]:
    """Which grids were tried whole, how many seeds there are, what was timed how often, what was not run."""
    missing = {row.title: [METHODS[method].title for method in asked[row.task] if method not in row.outcomes]
               for row in rows}
    rows = [row for row in rows if row.outcomes]
    found = [_each(rows, lambda row, method: _tried(row, method), "Points of the grids that were tried"),
             _each(rows, lambda row, method: f"{len(row.outcomes[method].records)}", "Seeds"),
             _each(rows, _rounds, "Measurements of the steps")]
    if any(missing.values()):
        found.append("Not run: " + "; ".join(f"on {title} {', '.join(names)}" for title, names in missing.items()
                                             if names) + ".")
    there = {row.task for row in rows if row.outcomes}
    elsewhere = [task.title for name, task in PAPER.items() if name not in there]
    if elsewhere:
        found.append(f"The paper's own problems are not among these ({', '.join(elsewhere)}): their data was not at "
                     "hand. Where torchvision has it in `data/`, `--tasks` with their names runs them.")
    return found


def _tried(row: Row, method: str) -> str:
    outcome = row.outcomes[method]
    return "all" if outcome.tried == outcome.grid else f"{outcome.tried} of {outcome.grid}"


def _rounds(row: Row, method: str) -> str:
    if method not in row.costs:
        return "none"
    return f"{row.costs[method].rounds}" if row.costs[method].rounds else "not written down"


def _each(rows: Sequence[Row], of: Callable[[Row, str], str], title: str) -> str:
    """What most cells of a task have is said once, then those that differ."""
    parts = []
    for row in rows:
        values = {method: of(row, method) for method in row.outcomes}
        common = _most_frequent(list(values.values()))
        others: dict[str, list[str]] = {}
        for method, value in values.items():
            if value != common:
                others.setdefault(value, []).append(METHODS[method].title)
        exceptions = "; ".join(f"{value} for {', '.join(names)}" for value, names in others.items())
        parts.append(f"{row.title} {common}" + (f" ({exceptions})" if exceptions else ""))
    return f"{title}: {'. '.join(parts)}."


def _most_frequent(values: Sequence[Hashable]) -> Hashable:
    return max(values, key=values.count)
