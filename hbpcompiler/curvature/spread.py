"""Eigendecompositions spread over the ranks of a torch.distributed group, the most expensive first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.curvature.symmetric import Eigen, Symmetric
from hbpcompiler.digest import digest_of
from hbpcompiler.errors import InputError, RankError, listing
from hbpcompiler.group import place_in, waiting


class _Told(NamedTuple):
    """What a rank tells the others when its part is done."""

    failure: str
    digests: list[str]
    """Of the matrices, which all ranks have alike."""


def decompose(matrices: Sequence[Symmetric], group: Any) -> None:
    """Find the eigenvectors of all, each on one rank, and hand them to the others: all ranks have all of them then.

    Every rank of the group calls this with the same matrices. Raises InputError on all ranks where they differ, and
    where a decomposition fails on the rank that has it; RankError on the others.
    """
    rank, world = place_in(group)
    owners = shares([cost(matrix.matrix) for matrix in matrices], world)
    failure: InputError | None = None
    try:
        for matrix, owner in zip(matrices, owners, strict=True):
            if owner == rank:
                _ = matrix.eigen
    except InputError as error:
        failure = error
    told: list[Any] = [None] * world
    own = _Told("" if failure is None else str(failure), [digest_of([matrix.matrix]) for matrix in matrices])
    with waiting(rank):
        torch.distributed.all_gather_object(told, own, group=group)
    if failure is not None:
        raise failure
    if failures := [f"rank {number}: {each.failure}" for number, each in enumerate(told) if each.failure]:
        raise RankError(listing("eigenvectors were not found on other ranks:", failures))
    if differing := [f"rank {number}" for number, each in enumerate(told) if each.digests != told[0].digests]:
        raise InputError(f"the matrices of {', '.join(differing)} are not those of rank 0: every rank needs the same "
                         "curvature, such as that of a total which accumulate has added up over the group")
    with waiting(rank):
        for matrix, owner in zip(matrices, owners, strict=True):
            _hand_on(matrix, owner, rank, group)


def shares(costs: Sequence[float], world: int) -> list[int]:
    """Which rank takes each: the most expensive first, to the rank that has least to do (Graham 1969)."""
    busy, owners = [0.0] * world, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owners[number] = min(range(world), key=busy.__getitem__)
        busy[owners[number]] += costs[number]
    return owners


def cost(matrix: Tensor) -> float:
    """Of its eigenvectors, up to a factor: the cube of its size, for each group."""
    return math.prod(matrix.shape[:-2]) * float(matrix.shape[-1]) ** 3


def _hand_on(matrix: Symmetric, owner: int, rank: int, group: Any) -> None:
    """From the rank that has them: eigenvalues and eigenvectors in one message."""
    shape = matrix.matrix.shape
    sizes = [math.prod(shape[:-1]), math.prod(shape)]
    if rank == owner:
        packed = torch.cat([part.reshape(-1) for part in matrix.eigen])
    else:
        packed = torch.empty(sum(sizes), dtype=torch.float64, device=matrix.matrix.device)
    torch.distributed.broadcast(packed, torch.distributed.get_global_rank(group, owner), group=group)
    if rank != owner:
        values, vectors = packed.split(sizes)
        matrix.know(Eigen(values.reshape(shape[:-1]), vectors.reshape(shape)))
