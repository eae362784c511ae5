"""The page of the documentation: tables, pictures, and what the numbers say in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.training.methods import METHODS, Point
from benchmarks.training.results import Curve, Outcome, Race, accuracies, losses, race
from benchmarks.training.seconds import Cost
from benchmarks.training.tasks import ALL, BASELINES
from benchmarks.training.tried import ALPHA, SYMBOLS, of_grids, of_tasks

RIVAL = "adam"
"""What the others are measured by."""


@dataclass(frozen=True)
class Row:
    """A task with what came of its optimizers."""

    task: str
    outcomes: Mapping[str, Outcome]
    costs: Mapping[str, Cost]

    @property
    def title(self) -> str:
        return ALL[self.task].title

    def race(self, method: str, rival: str = RIVAL) -> Race:
        own, other = self.outcomes[method], self.outcomes[rival]
        return race(own.records, other.records, own.epochs)

    def cost(self, method: str, rival: str = RIVAL) -> float:
        """Of an epoch, in epochs of the rival; NaN where one of them has not been timed."""
        if method not in self.costs or rival not in self.costs:
            return math.nan
        return self.costs[method].median / self.costs[rival].median

    @property
    def with_curvature(self) -> list[str]:
        return [method for method in self.outcomes if METHODS[method].curvature]

    def ahead(self, rival: str, by_time: bool) -> list[str]:
        """Those with curvature that are ahead of the rival in three quarters of the seeds."""
        if rival not in self.outcomes:
            return []
        return [method for method in self.with_curvature
                if self.race(method, rival).ahead(self.cost(method, rival) if by_time else 1.0)]


def write(rows: Sequence[Row], pictures: Mapping[str, str], notes: Sequence[str]) -> str:
    """`pictures`: by task, paths from the page; `notes`: how these figures came about, a line each."""
    rows = [row for row in rows if row.outcomes]
    parts = [_head(notes), _verdicts(rows), _settings(rows)]
    parts += [_task(row, pictures.get(row.task)) for row in rows]
    return "\n".join(parts)


def paragraph(text: str) -> list[str]:
    """Lines as the other pages have them, and an empty one."""
    return [*textwrap.wrap(text, 119, break_long_words=False, break_on_hyphens=False), ""]


def _head(notes: Sequence[str]) -> str:
    lines = ["# Optimizers compared", ""]
    lines += paragraph(
        "Written by `python -m benchmarks.training`. Training with curvature beside momentum SGD and Adam, by the "
        "protocol of the paper of BackPACK (Dangel, Kunstner & Hennig 2020, section 4 and appendix C): a grid of "
        "hyperparameters with one seed; the setting of the highest final accuracy on validation data; that setting "
        "with other seeds; medians and quartiles. The data is small and at hand, the networks are the paper's made "
        "as small, momentum SGD and Adam are tuned on grids as large as the others', all meet the same initial "
        "weights and batches, and there is no l2 term.")
    lines += paragraph(
        "DiagGGN, DiagGGN-MC, KFAC, KFLR and KFRA are the paper's rule (equation 27): each batch's own curvature, a "
        "constant damping, no momentum; a weight and its bias share a block. *KFAC, averaged, momentum 0.9* is "
        "`hbp.optim.KFAC` with averages of 0.95, an inverse every 5 steps and `norm_constraint=1e-2`; *KFAC, steps by "
        "its model* takes step and momentum from the quadratic model and adapts its damping, of which the first value "
        "is tuned, with `least_damping=1e-3`; *without a bound*: with 1e-8. *EKFAC* has the averages of the former. "
        "*Sophia* and *AdaHessian* are rules of `hbp.optim.Diagonal`, *Block Newton* is `hbp.optim.BlockNewton` with "
        "the GGN, *Newton* `hbp.optim.Newton` with all eigenvectors of the sampled GGN and a constant damping, or one "
        "from the noise of slopes and curvatures. How to use them: [Training with curvature](training.md).")
    for note in notes:
        lines += textwrap.wrap(note, 119, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, ""])


# -- what the numbers say ----------------------------------------------------------------------------------------------


def _verdicts(rows: Sequence[Row]) -> str:
    lines = ["## What wins where", ""]
    lines += paragraph(
        "*Ahead of Adam by epochs*: in at least three quarters of the seeds the training loss is where Adam's ends in "
        "fewer epochs than Adam took, and not above it at the end. *By time*: the same with the seconds that these "
        "epochs take. In brackets: the median of the epochs, or of the time, in parts of Adam's whole run.")
    lines += ["| task | ahead of Adam by epochs | ... by time | ahead of Momentum by time | best test accuracy |",
              "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.title} | {_ahead(row, RIVAL, False)} | {_ahead(row, RIVAL, True)} | "
                     f"{_ahead(row, 'momentum', True)} | {_best_accuracy(row)} |")
    by_epochs = [row.title for row in rows if row.ahead(RIVAL, by_time=False)]
    without = [row.title for row in rows if _timed(row) and not row.ahead(RIVAL, by_time=True)]
    lines += ["", f"Some optimizer with curvature is ahead of tuned Adam by epochs on {_listed(by_epochs, len(rows))}.",
              f"None is ahead of it by time on {_listed(without, len(rows))}.", ""]
    for row in rows:
        lines += textwrap.wrap(_sentence(row), 119, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, ""])


def _timed(row: Row) -> bool:
    return RIVAL in row.costs and any(method in row.costs for method in row.with_curvature)


def _listed(titles: Sequence[str], count: int) -> str:
    if not titles:
        return f"none of the {count} tasks"
    return f"{len(titles)} of the {count} tasks ({', '.join(titles)})"


def _ahead(row: Row, rival: str, by_time: bool) -> str:
    if rival not in row.outcomes:
        return "-"
    if by_time and not _timed(row):
        return "not timed"
    found = []
    for method in row.ahead(rival, by_time):
        own = row.race(method, rival)
        part = own.median / own.whole * (row.cost(method, rival) if by_time else 1.0)
        found.append((part, f"{METHODS[method].title} ({part:.2f})"))
    return ", ".join(text for _, text in sorted(found)) or "none"


def _best_accuracy(row: Row) -> str:
    finals = {method: outcome.final(accuracies, "test") for method, outcome in row.outcomes.items()}
    best = max(finals, key=lambda method: float(finals[method].median[0]))
    text = f"{METHODS[best].title} {_percent(finals[best])}"
    if best != RIVAL and RIVAL in finals:
        apart = float(finals[best].low[0]) > float(finals[RIVAL].high[0])
        text += f"; Adam {_percent(finals[RIVAL])}" + ("" if apart else ": quartiles overlap")
    return text


def _sentence(row: Row) -> str:
    """The fastest by epochs, what its time has to do with it, and whose runs went astray."""
    astray = [f"{METHODS[method].title} ({found} of {len(outcome.records)})"
              for method, outcome in row.outcomes.items() if (found := outcome.astray)]
    return _fastest(row) + (f" No better at the end than before training: {', '.join(astray)} seeds." if astray else "")


def _fastest(row: Row) -> str:
    if RIVAL not in row.outcomes or not row.with_curvature:
        return f"- **{row.title}**: nothing to compare."
    races = {method: row.race(method) for method in row.with_curvature}
    first = min(races, key=lambda method: races[method].median)
    title, own = METHODS[first].title, races[first]
    if math.isinf(own.median):
        return f"- **{row.title}**: none of those with curvature comes to Adam's final training loss."
    text = (f"- **{row.title}**: {title} is where Adam is after {own.whole} epochs in {own.median:g} of them "
            f"(in {own.wins} of {len(own.epochs)} seeds in fewer)")
    cost = row.cost(first)
    if not math.isnan(cost):
        time = own.median * cost / own.whole
        text += f"; its epoch takes {cost:.1f} times Adam's, so that it needs {time:.2f} of Adam's time"
    return f"{text}."


# -- tables ------------------------------------------------------------------------------------------------------------


def _settings(rows: Sequence[Row]) -> str:
    """As the paper's Table 3."""
    lines = ["## Best hyperparameters", ""]
    lines += paragraph(
        f"As the paper's Table 3: step size {ALPHA}, damping λ, momentum μ, Adam's β₁. ✓ or ✗: whether the setting is "
        "inside its grid, or at an edge. In brackets: how many points of the grid were tried, of how many; and with "
        "how many other seeds the best one was run.")
    lines += ["| | " + " | ".join(row.title for row in rows) + " |", "|---|" + "---|" * len(rows)]
    for method in _methods(rows):
        cells = [_setting(row.outcomes.get(method)) for row in rows]
        lines.append(f"| {METHODS[method].title} | " + " | ".join(cells) + " |")
    lines += ["", "### What was tried", "", *of_tasks(row.task for row in rows), "", *of_grids(_methods(rows))]
    return "\n".join([*lines, ""])


def _methods(rows: Iterable[Row]) -> list[str]:
    """In the order of the table of methods, the baselines last as in the paper."""
    present = {method for row in rows for method in row.outcomes}
    return [method for method in METHODS if method in present and method not in BASELINES] + [
        method for method in BASELINES if method in present]



def point_text(point: Point) -> str:
    return ", ".join(f"{SYMBOLS.get(name, name)} {value:g}" for name, value in point)


def _setting(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    inside, tried = "✓" if outcome.interior else "✗", f"{outcome.tried}/{outcome.grid}"
    return f"{point_text(outcome.point)} {inside} ({tried}; {len(outcome.records)})"


def _task(row: Row, picture: str | None) -> str:
    some = next(iter(row.outcomes.values()))
    counts = sorted({len(outcome.records) for outcome in row.outcomes.values()})
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else (
        f"{counts[0]} to {counts[-1]} seeds (the table above says of which optimizer)")
    lines = [f"## {row.title}", ""]
    if picture:
        lines += [f"![Losses and accuracies over epochs and over time: {row.title}]({picture})", ""]
    lines += paragraph(
        f"After {some.epochs} epochs of {len(ALL[row.task].data().train) // ALL[row.task].batch} steps, "
        f"{seeds}: medians, in brackets quartiles. *Epochs*: until the training loss is where Adam's "
        "ends, the median over seeds; in how many seeds that is sooner. *Epoch*: what one takes, in Adam's; *time*: "
        "what these epochs take, in Adam's whole run.")
    lines += ["| | training loss | test loss | test accuracy | epochs | sooner | epoch | time |",
              "|---|---|---|---|---|---|---|---|"]
    for method in _methods([row]):
        lines.append(f"| {METHODS[method].title} | {_results(row, method)} |")
    return "\n".join([*lines, ""])


def short_table(rows: Sequence[Row]) -> str:
    """A line for each task and optimizer, without times."""
    lines = ["| task | | seeds | training loss | test loss | test accuracy | sooner than Adam |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        for method in _methods([row]):
            outcome = row.outcomes[method]
            raced = method != RIVAL and RIVAL in row.outcomes
            sooner = f"{row.race(method).wins} of {len(row.race(method).epochs)}" if raced else ""
            lines.append(f"| {row.title} | {METHODS[method].title} | {len(outcome.records)} | "
                         f"{' | '.join(_finals(outcome))} | {sooner} |")
    return "\n".join([*lines, ""])


def _finals(outcome: Outcome) -> list[str]:
    if not math.isfinite(float(outcome.final(losses, "train").median[0])):
        return ["diverged", "diverged", "-"]
    return [_loss(outcome.final(losses, "train")), _loss(outcome.final(losses, "test")),
            _percent(outcome.final(accuracies, "test"))]


def _results(row: Row, method: str) -> str:
    outcome = row.outcomes[method]
    cells = _finals(outcome)
    if RIVAL not in row.outcomes:
        return " | ".join([*cells, "-", "-", "-", "-"])
    own, cost = row.race(method), row.cost(method)
    reached = "not reached" if math.isinf(own.median) else f"{own.median:g} of {own.whole}"
    sooner = "" if method == RIVAL else f"{own.wins} of {len(own.epochs)}"
    time = own.median * cost / own.whole
    cells += [reached, sooner, "" if math.isnan(cost) else f"{cost:.2f}",
              "" if math.isnan(time) or math.isinf(time) else f"{time:.2f}"]
    return " | ".join(cells)


def _loss(final: Curve) -> str:
    low, median, high = (float(values[0]) for values in (final.low, final.median, final.high))
    return f"{median:.3g} [{low:.3g}, {high:.3g}]"


def _percent(final: Curve) -> str:
    low, median, high = (100 * float(values[0]) for values in (final.low, final.median, final.high))
    return f"{median:.1f} % [{low:.1f}, {high:.1f}]"
