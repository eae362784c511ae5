"""The memory budget: plans are drafted until the predicted peak of one keeps to it; calls are checked against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx

from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.plan.steps import Plan
from hbpcompiler.errors import InputError, OptionError


@dataclass(frozen=True)
class Draft:
    """A plan and the program that it became."""

    plan: Plan
    graph: fx.Graph
    code: str
    memory: MemoryModel
    cost: ProgramCost


def within_budget(make: Callable[[Resources], Draft], resources: Resources, budget: int | None, batch: int) -> Draft:
    """The fastest draft whose predicted peak at this batch size keeps to the budget of bytes.

    Without a budget that is the first one. Otherwise the draft with the smallest chunks tells what is held in any
    case, and the chunks may take what is left, in shares (`Limits.budget_shares`). Raises OptionError where even the
    smallest chunks are too much.
    """
    draft = make(resources)
    if budget is None or draft.memory.peak(batch) <= budget:
        return draft
    least = make(replace(resources, temporaries=1, batch=batch))
    room = budget - least.memory.peak(batch)
    if room < 0:
        least = min(draft, least, key=lambda draft: draft.memory.peak(batch))
        raise OptionError(f"memory_budget={budget} ({size(budget)}) is too small: a batch of {batch} needs about "
                          f"{size(least.memory.peak(batch))}, even in the smallest chunks. "
                          f"{_advice(least.memory, budget, batch)}")
    for share in resources.limits.budget_shares:
        draft = make(replace(resources, temporaries=max(1, room // share), batch=batch))
        if draft.memory.peak(batch) <= budget:
            return draft
    return least


def check_fits(memory: MemoryModel, budget: int | None, batch: int) -> None:
    """Raise InputError if a call with so many samples is predicted to need more than the budget."""
    if budget is not None and memory.peak(batch) > budget:
        raise InputError(f"a batch of {batch} needs about {size(memory.peak(batch))}, more than memory_budget={budget} "
                         f"({size(budget)}). {_advice(memory, budget, batch)}. This program was planned for the size "
                         "of its first batch: planned for this size (example_inputs) it may need less")


def _advice(memory: MemoryModel, budget: int, batch: int) -> str:
    fits = memory.largest_batch(budget, batch)
    what = f"Batches of up to {fits} fit" if fits else "Not even one sample fits"
    return f"{what}; otherwise raise the budget or ask for fewer quantities"


def size(count: int) -> str:
    """Bytes in words: 1.5 GiB."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count} B"
