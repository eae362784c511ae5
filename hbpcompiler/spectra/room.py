"""The memory that a decomposition takes, and whether it may."""

from __future__ import annotations

import torch

from hbpcompiler.compiler.budget import size
from hbpcompiler.compiler.cost.free_memory import free_bytes
from hbpcompiler.errors import InputError
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.spectra.decompose import Columns, Products

COPIES = 4
"""Matrices in float64 that are alive at once: the one that is decomposed, its eigenvectors, LAPACK's two to work in."""


def decomposition_bytes(order: int) -> int:
    """Of a matrix [order, order], beside what it was made from."""
    return COPIES * order**2 * torch.float64.itemsize


def check_room(group: Products | Columns, samples: int, budget: int | None, device: torch.device,
               limits: Limits | None) -> None:
    """InputError if a group's decomposition would need more than the budget of bytes, or without one than is free."""
    limits = limits or DEFAULT_LIMITS
    needed = decomposition_bytes(group.order) + group.bytes
    if budget is None and needed <= limits.unchecked_bytes:
        return
    room = free_bytes(device) if budget is None else budget
    if room is not None and needed > room:
        which = f"memory_budget={budget} ({size(room)})" if budget else f"the {size(room)} of memory that are free"
        raise InputError(
            f"a batch of {samples} needs about {size(needed)} for the eigenvalues of a matrix of {group.order} x "
            f"{group.order}, more than {which}; take fewer samples (slopes_of gives the slopes of the others) or "
            "columns='sampled'")
