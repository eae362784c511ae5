"""The memory budget: plans are drafted until the predicted peak of one keeps to it; calls are checked against it.

Without one of the user's, a plan keeps to a share of what the machine, or the device, has free when it is made. A call
is refused only where it needs more than all that is free then: what has been allocated since, as the last result, is no
reason to refuse what still fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from hbpcompiler.compiler.cost.decisions import Decisions
from hbpcompiler.compiler.cost.figures import UNLIMITED, Resources
from hbpcompiler.compiler.cost.free_memory import free_bytes
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.errors import HbpError, InputError, OptionError
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Draft:
    """A plan and the program that it became."""

    plan: Plan
    graph: fx.Graph
    code: str
    memory: MemoryModel
    cost: ProgramCost
    written: Callable[..., str]
    """The file's text for a rewritten graph, and perhaps more lines at its head."""
    decisions: Decisions = field(default_factory=Decisions)
    """What was decided by size, for the same plan at another length."""
    resources: Resources = UNLIMITED
    """What it was planned with."""
    length: int | None = None
    """T, where the program serves any: memory and cost are for this one."""


@dataclass(frozen=True)
class Room:
    """The most that a call may allocate, and who says so."""

    bytes: int
    given: bool
    """by the user, as memory_budget; else it is what is free."""

    def __str__(self) -> str:
        if self.given:
            return f"memory_budget={self.bytes} ({size(self.bytes)})"
        return f"the {size(self.bytes)} of memory that are free"

    def plan_bytes(self, limits: Limits) -> int:
        """What a plan keeps to, where it can."""
        return self.bytes if self.given else int(limits.free_share * self.bytes)

    @property
    def instead(self) -> str:
        """What to do about it."""
        more = ("raise the budget" if self.given else
                "free some (earlier results), set memory_budget to what it may take all the same,")
        return f"{more} or ask for fewer quantities"


def room_for(memory: MemoryModel, budget: int | None, batch: int, device: torch.device,
             limits: Limits) -> Room | None:
    """What a call with so many samples has to keep to; None where that is not known, or the call needs little."""
    if budget is not None:
        return Room(budget, True)
    if memory.surely_within(limits.unchecked_bytes, batch):
        return None
    free = free_bytes(device)
    # A run of the program on tensors without memory tells what it needs: left out where plenty is free.
    if free is None or memory.surely_within(int(limits.free_share * free), batch):
        return None
    return Room(free, False) if memory.may_exceed(limits.unchecked_bytes, batch) else None


def within_budget(make: Callable[[Resources], Draft], resources: Resources, budget: int | None, batch: int,
                  device: torch.device = CPU) -> Draft:
    """The fastest draft whose predicted peak at this batch size keeps to the budget of bytes.

    Without a budget it is a share of what the device has free. The first draft is taken if it keeps to it. Otherwise
    the one with the smallest chunks tells what is held in any case, and the chunks may take what is left, in shares
    (`Limits.budget_shares`). Where even the smallest chunks are too much: OptionError for a budget of the user's,
    InputError for all that is free.
    """
    draft = make(resources)
    room = room_for(draft.memory, budget, batch, device, resources.limits)
    if room is None or not draft.memory.may_exceed(room.plan_bytes(resources.limits), batch):
        return draft
    least = make(replace(resources, temporaries=1, batch=batch))
    left = room.plan_bytes(resources.limits) - least.memory.peak(batch)
    if left < 0:
        # Of few samples a plan may take all at once where one for more goes by chunks, which hold less.
        for_more = make(replace(resources, temporaries=1, batch=4 * batch))
        least = min(draft, least, for_more, key=lambda draft: draft.memory.peak(batch))
        if least.memory.peak(batch) > room.bytes:
            raise _too_small(least.memory, room, batch)
        return least
    for share in resources.limits.budget_shares:
        draft = make(replace(resources, temporaries=max(1, left // share), batch=batch))
        if draft.memory.peak(batch) <= room.plan_bytes(resources.limits):
            return draft
    return least


def _too_small(least: MemoryModel, room: Room, batch: int) -> HbpError:
    needed, advice = size(least.peak(batch)), _advice(least, room, batch)
    if room.given:
        return OptionError(f"{room} is too small: a batch of {batch} needs about {needed}, even in the smallest "
                           f"chunks. {advice}")
    return InputError(f"a batch of {batch} needs about {needed}, even in the smallest chunks, more than {room}. "
                      f"{advice}")


def check_fits(memory: MemoryModel, budget: int | None, batch: int, device: torch.device = CPU,
               limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise InputError if a call with so many samples is predicted to need more than the budget, or than is free."""
    room = room_for(memory, budget, batch, device, limits)
    if room is not None and memory.may_exceed(room.bytes, batch):
        raise InputError(f"a batch of {batch} needs about {size(memory.peak(batch))}, more than {room}. "
                         f"{_advice(memory, room, batch)}. This program was planned for the size "
                         "of its first batch: planned for this size (example_inputs) it may need less")


def _advice(memory: MemoryModel, room: Room, batch: int) -> str:
    fits = memory.largest_batch(room.bytes, batch)
    what = f"Batches of up to {fits} fit" if fits else "Not even one sample fits"
    return f"{what}; otherwise {room.instead}"


def size(count: int) -> str:
    """Bytes in words: 1.5 GiB."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{count / bytes_each:.1f} {unit}"
    return f"{count} B"
