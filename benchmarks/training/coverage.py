"""How much of the protocol the figures on the page come from, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.training.methods import METHODS
from benchmarks.training.page import Row
from benchmarks.training.tasks import PAPER, UNDEFINED


def sentences(rows: Sequence[Row], asked: Mapping[str, Sequence[str]]) -> list[str]:
    """Which grids were tried whole, how many seeds there are, what was timed how often, what was not run."""
    missing = {row.title: [method for method in asked[row.task]
                           if method not in row.outcomes and (row.task, method) not in UNDEFINED] for row in rows}
    undefined = [f"{_titles([method])} on {row.title}: {UNDEFINED[row.task, method]}"
                 for row in rows for method in asked[row.task] if (row.task, method) in UNDEFINED]
    rows = [row for row in rows if row.outcomes]
    found = [_grids(rows), *_mostly_whole(rows), _times(rows)]
    if any(missing.values()):
        found.append(f"Not run: {_by_task(missing)}.")
    if undefined:
        found.append(f"There is no {'; '.join(undefined)}.")
    there = {row.task for row in rows}
    elsewhere = [task.title for name, task in PAPER.items() if name not in there]
    if elsewhere:
        found.append(f"The paper's own problems are not among these ({', '.join(elsewhere)}): their data was not at "
                     "hand. Where torchvision has it in `data/`, `--tasks` with their names runs them.")
    return found


def _grids(rows: Sequence[Row]) -> str:
    """The table of hyperparameters has the numbers of each."""
    outcomes = {(row.task, method): outcome for row in rows for method, outcome in row.outcomes.items()}
    methods = dict.fromkeys(method for _, method in outcomes)
    whole = [method for method in methods
             if all(outcome.tried == outcome.grid for (_, each), outcome in outcomes.items() if each == method)]
    parts = [outcome.tried for (_, method), outcome in outcomes.items() if method not in whole]
    seeds = {kind: [len(outcome.records) for (_, method), outcome in outcomes.items() if (method in whole) == kind]
             for kind in (True, False)}
    text = f"Whole grids everywhere: {_titles(whole) or 'none'}"
    text += f", with {_span(seeds[True])} seeds." if whole else "."
    if parts:
        text += (f" Of the others' grids {_span(parts)} points were tried, and the best one has {_span(seeds[False])} "
                 "seeds; the table of hyperparameters says how many each has.")
    return text


def _mostly_whole(rows: Sequence[Row]) -> list[str]:
    """The tasks on which most grids were tried whole: a sentence for each, with those that were not."""
    found = []
    for row in rows:
        whole = [outcome for outcome in row.outcomes.values() if outcome.tried == outcome.grid]
        rest = [method for method, outcome in row.outcomes.items() if outcome.tried < outcome.grid]
        if len(whole) > len(rest):
            seeds = _span([len(outcome.records) for outcome in whole])
            found.append(f"On {row.title} whole grids of all optimizers{' but ' if rest else ''}{_titles(rest)}, with "
                         f"{seeds} seeds.")
    return found


def _times(rows: Sequence[Row]) -> str:
    rounds = [cost.rounds for row in rows for method, cost in row.costs.items() if method in row.outcomes]
    text = f"Steps were timed {_span([each for each in rounds if each]) or 'an unknown number of'} times each."
    unknown = {row.title: [method for method in row.outcomes if method in row.costs and not row.costs[method].rounds]
               for row in rows}
    without = {row.title: [method for method in row.outcomes if method not in row.costs] for row in rows}
    if any(unknown.values()):
        text += f" It was not written down how often {_by_task(unknown)}."
    if any(without.values()):
        text += f" Not timed, so that what is said of times leaves them out: {_by_task(without)}."
    return text


def _by_task(methods: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"on {title} {_titles(each)}" for title, each in methods.items() if each)


def _titles(methods: Iterable[str]) -> str:
    return ", ".join(f"*{METHODS[method].title}*" for method in methods)


def _span(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
