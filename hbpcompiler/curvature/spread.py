"""Eigendecompositions and inverses spread over the ranks of a torch.distributed group, the most expensive first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.curvature.symmetric import Eigen, Symmetric
from hbpcompiler.errors import InputError, RankError, listing
from hbpcompiler.system.digest import digest_of
from hbpcompiler.system.group import place_in, waiting


class _Told(NamedTuple):
    """What a rank tells the others when its part is done."""

    failure: str
    digests: list[str]
    """Of the matrices, which all ranks have alike."""
    found: dict[int, Any]


def decompose(matrices: Sequence[Symmetric], group: Any) -> None:
    """Find the eigenvectors of all, each on one rank, and hand them to the others: all ranks have all of them then.

    Every rank of the group calls this with the same matrices. Raises as `spread` does.
    """
    def find(number: int) -> None:
        _ = matrices[number].eigen

    owners, _ = spread([[matrix.matrix] for matrix in matrices], find, group)
    rank, _ = place_in(group)
    for matrix, owner in zip(matrices, owners, strict=True):
        _hand_on(matrix, owner, rank, group)


def eigenvectors(matrices: Sequence[Symmetric], group: Any) -> list[Tensor]:
    """As `decompose`, of each the eigenvectors in the matrix' own dtype: in float64 no rank holds more than one's."""
    own: dict[int, Tensor] = {}

    def find(number: int) -> None:
        own[number] = matrices[number].eigen.vectors.to(matrices[number].matrix.dtype).contiguous()
        matrices[number].forget()

    owners, _ = spread([[matrix.matrix] for matrix in matrices], find, group)
    found = []
    for number, owner in enumerate(owners):
        vectors = own.pop(number) if number in own else torch.empty_like(
            matrices[number].matrix, memory_format=torch.contiguous_format)
        hand_on(vectors, owner, group)
        found.append(vectors)
    return found


def spread(matrices: Sequence[Sequence[Tensor]], find: Callable[[int], Any], group: Any) -> tuple[list[int], list[Any]]:
    """Do something with some matrices each time, on one rank each: which rank has done it, and what `find` has returned
    there, by number.

    Every rank of the group calls this with the same matrices. Raises InputError on all ranks where they differ, and
    where it fails on the rank that has it; RankError on the others.
    """
    rank, world = place_in(group)
    owners = shares([sum(map(cost, own)) for own in matrices], world)
    failure: InputError | None = None
    found: dict[int, Any] = {}
    try:
        for number, owner in enumerate(owners):
            if owner == rank:
                found[number] = find(number)
    except InputError as error:
        failure = error
    told: list[Any] = [None] * world
    mine = _Told("" if failure is None else str(failure), [digest_of(own) for own in matrices], found)
    with waiting(rank):
        torch.distributed.all_gather_object(told, mine, group=group)
    if failure is not None:
        raise failure
    if failures := [f"rank {number}: {each.failure}" for number, each in enumerate(told) if each.failure]:
        raise RankError(listing("eigenvectors or inverses were not found on other ranks:", failures))
    if differing := [f"rank {number}" for number, each in enumerate(told) if each.digests != told[0].digests]:
        raise InputError(f"the matrices of {', '.join(differing)} are not those of rank 0: every rank needs the same "
                         "curvature, such as that of a total which accumulate has added up over the group")
    return owners, [told[owner].found[number] for number, owner in enumerate(owners)]


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


def hand_on(tensor: Tensor, owner: int, group: Any) -> None:
    """A contiguous tensor from the rank that has it to the others', in place."""
    rank, _ = place_in(group)
    with waiting(rank):
        torch.distributed.broadcast(tensor, torch.distributed.get_global_rank(group, owner), group=group)


def _hand_on(matrix: Symmetric, owner: int, rank: int, group: Any) -> None:
    """From the rank that has them: eigenvalues and eigenvectors in one message."""
    shape = matrix.matrix.shape
    sizes = [math.prod(shape[:-1]), math.prod(shape)]
    if rank == owner:
        packed = torch.cat([part.reshape(-1) for part in matrix.eigen])
    else:
        packed = torch.empty(sum(sizes), dtype=torch.float64, device=matrix.matrix.device)
    hand_on(packed, owner, group)
    if rank != owner:
        values, vectors = packed.split(sizes)
        matrix.know(Eigen(values.reshape(shape[:-1]), vectors.reshape(shape)))
