"""A process's place in a torch.distributed group, and what is said where another one is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hbpcompiler.errors import InputError, RankError


def place_in(group: Any) -> tuple[int, int]:
    """Rank and number of ranks. Raises InputError for a process that is not in the group."""
    rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    if rank < 0:
        raise InputError("this process is not in the group that was given")
    return rank, world


@contextmanager
def waiting(rank: int) -> Iterator[None]:
    """RankError where a message to all ranks inside fails: within the group's timeout, if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"rank {rank} waited for the others in vain: one of them is gone ({error})") from error
