"""Gradients of queries, multiplied by the inverse of the curvature, and kept at full or at low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hbpcompiler.curvature import Block, Curvature
from hbpcompiler.curvature.place import Matrix
from hbpcompiler.limits import DEFAULT_LIMITS

HEURISTIC = 0.1
"""Times the mean eigenvalue of a block: the damping where none is given (Grosse et al. 2023, section 3.2)."""

Gradients = Mapping[str, Tensor]
"""By parameter, [F, *theta]."""


@dataclass(frozen=True)
class Inverse:
    """(H + damping)^-1."""

    curvature: Curvature
    damping: Mapping[str, float]
    split: str
    direction_bytes: int = DEFAULT_LIMITS.direction_bytes
    """Of the vectors that are met at once."""

    def times(self, gradients: Gradients) -> dict[str, Tensor]:
        """In the gradients' dtype, some of them at a time: eigenvectors are met in float64."""
        found: dict[str, list[Tensor]] = {name: [] for name in gradients}
        for rows in slices(gradients, 3 * 8, self.direction_bytes):
            own = {name: part[rows] for name, part in gradients.items()}
            solved: dict[str, Tensor] = self.curvature.solve(own, dict(self.damping), self.split)
            for name, part in solved.items():
                found[name].append(part)
        return {name: torch.cat(parts) for name, parts in found.items()}


def dampings(curvature: Curvature) -> dict[str, float]:
    """What each parameter's block gets where nothing is said."""
    found: dict[str, float] = {}
    for block in curvature.blocks:
        found |= dict.fromkeys(block.names, HEURISTIC * block.eigenvalues.mean().item())
    return {name: found[name] for name in curvature.names}


class Directions:
    """Preconditioned gradients of Q queries. With a rank, those of blocks that are matrices [outputs, inputs] are kept
    as the factors of their best approximation of that rank (Eckart & Young 1936), where those are smaller.
    """

    def __init__(self, curvature: Curvature, gradients: Gradients, rank: int | None) -> None:
        self.count = len(next(iter(gradients.values())))
        self._whole: dict[str, Tensor] = {}
        self._factors: list[tuple[Block, Tensor, Tensor]] = []
        for block in curvature.blocks:
            if rank is not None and stored(block, rank) < sum(block.place.numels):
                left, right = truncated(block.place.gather(gradients), rank)
                self._factors.append((block, left, right))
            else:
                self._whole |= {name: gradients[name] for name in block.names}

    def parts(self, most: int) -> Iterator[dict[str, Tensor]]:
        """As many as have so many bytes at a time, {name: [F, *theta]}, in order."""
        each = sum(sum(block.place.numels) * left.element_size() for block, left, _ in self._factors)
        each += sum(part[0].numel() * part.element_size() for part in self._whole.values())
        at_once = max(1, most // max(each, 1))
        for first in range(0, self.count, at_once):
            rows = slice(first, first + at_once)
            found = {name: part[rows] for name, part in self._whole.items()}
            for block, left, right in self._factors:
                found |= block.place.scatter(left[rows] @ right[rows])
            yield found

    @classmethod
    def joined(cls, several: list[Directions]) -> Directions:
        """Those of several batches of queries as one."""
        whole = cls.__new__(cls)
        whole.count = sum(own.count for own in several)
        whole._whole = {name: torch.cat([own._whole[name] for own in several]) for name in several[0]._whole}
        whole._factors = [(block, torch.cat([own._factors[number][1] for own in several]),
                           torch.cat([own._factors[number][2] for own in several]))
                          for number, (block, _, _) in enumerate(several[0]._factors)]
        return whole


def stored(block: Block, rank: int | None) -> int:
    """Numbers that are kept of one query's vector in this block."""
    count, place = sum(block.place.numels), block.place
    if rank is None or not isinstance(place, Matrix):
        return count
    return min(count, place.groups * rank * (place.outputs + place.inputs))


def truncated(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors [..., outputs, rank] and [..., rank, inputs] of the best approximations of matrices."""
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    left = left[..., :rank] * values[..., None, :rank]
    return left.to(matrices.dtype), right[..., :rank, :].to(matrices.dtype)


def slices(gradients: Gradients, bytes_each: int, most: int) -> Iterator[slice]:
    """Samples at a time, so that so many bytes for each number stay within `most`."""
    numbers = sum(math.prod(part.shape[1:]) for part in gradients.values())
    count = len(next(iter(gradients.values())))
    at_once = max(1, most // max(1, bytes_each * numbers))
    for first in range(0, count, at_once):
        yield slice(first, first + at_once)
