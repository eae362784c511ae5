"""A rank's part of a data set."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset

from hbpcompiler.errors import InputError


def shard(dataset: Any, rank: int, world: int) -> Subset[Any]:
    """Samples rank, rank + world, rank + 2 world, ... of a data set with indices: every sample on one rank, none twice.

    torch's DistributedSampler repeats samples so that all ranks have as many, and a sum over ranks is then wrong. Here
    ranks may differ by one sample. Raises InputError for a rank that is not in range(world).
    """
    if world < 1 or not 0 <= rank < world:
        raise InputError(f"rank {rank} of {world}: rank must be one of 0, ..., world - 1")
    return Subset(dataset, range(rank, len(dataset), world))
