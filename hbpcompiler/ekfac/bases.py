"""Eigenvectors of Kronecker factors, in float64, each found by one rank; and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.accumulate.checkpoint import read_file, write_file
from hbpcompiler.accumulate.ranks import Ranks
from hbpcompiler.curvature.symmetric import Symmetric, symmetrised
from hbpcompiler.digest import digest_of
from hbpcompiler.errors import InputError, RankError, listing

FORMAT = "hbpcompiler bases 1"


class Bases(NamedTuple):
    """Eigenvectors of a parameter's factors, as columns; for a grouped convolution one matrix for each group."""

    A: Tensor
    B: Tensor


class Decomposed(NamedTuple):
    """What `hbp.curvature` makes an EKFAC block of."""

    A: Tensor
    B: Tensor
    eigenvalues: Tensor


Place = tuple[str, str]
"""A parameter's name, and which of its factors."""


def eigenbases(factors: Mapping[str, Any], ranks: Ranks, path: Path | None) -> dict[str, Bases]:
    """Of A and B of each parameter, in their dtype; all ranks get the same.

    A decomposition is made by the rank that has least to do so far, the largest first, as d^3. `path` is a file that
    the first rank writes them to, and reads them from where they are those of the same factors. Raises InputError for a
    factor that has no eigenvectors (it is not finite), RankError on the other ranks.
    """
    matrices = {(name, side): getattr(pair, side) for name, pair in factors.items() for side in ("A", "B")}
    digest = digest_of(tuple(matrices.values())) if path is not None else ""
    known = _read(path, digest, matrices) if path is not None and ranks.rank == 0 else None
    if any(told(ranks, known is not None)):
        owners = dict.fromkeys(matrices, 0)
        found = known or {}
    else:
        owners = assigned({place: matrix.numel() * matrix.shape[-1] for place, matrix in matrices.items()}, ranks.world)
        found = _decomposed(matrices, owners, ranks)
    shared = {place: _shared(found.get(place), matrix, owners[place], ranks) for place, matrix in matrices.items()}
    if path is not None and ranks.rank == 0 and known is None:
        write_file(path, {"format": FORMAT, "of": digest, "bases": [(*place, each) for place, each in shared.items()]})
    return {name: Bases(shared[name, "A"], shared[name, "B"]) for name in factors}


def assigned(costs: Mapping[Place, int], world: int) -> dict[Place, int]:
    """The rank of each, the costliest first, to the one with the least so far."""
    loads, owners = [0] * world, {}
    for place, cost in sorted(costs.items(), key=lambda item: (-item[1], item[0])):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += cost
    return owners


def _decomposed(matrices: Mapping[Place, Tensor], owners: Mapping[Place, int], ranks: Ranks) -> dict[Place, Tensor]:
    """Those that this rank owns. Raises on all ranks if one of them fails."""
    found: dict[Place, Tensor] = {}
    failure: InputError | None = None
    try:
        for (name, side), matrix in matrices.items():
            if owners[name, side] == ranks.rank:
                own = Symmetric(symmetrised(matrix), f"factor {side} of {name!r}", 0.0)
                found[name, side] = own.eigen.vectors.to(matrix.dtype)
    except InputError as error:
        failure = error
    failures = told(ranks, "" if failure is None else str(failure))
    if failure is not None:
        raise failure
    if any(failures):
        raise RankError(listing("eigenvectors were not found on other ranks:",
                                [f"rank {rank}: {text}" for rank, text in enumerate(failures) if text]))
    return found


def told(ranks: Ranks, own: Any) -> Sequence[Any]:
    """What each rank says."""
    if not ranks.several:
        return [own]
    told: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(told, own, group=ranks.group)
    return told


def _shared(own: Tensor | None, like: Tensor, owner: int, ranks: Ranks) -> Tensor:
    """The owner's, on every rank."""
    basis = torch.empty_like(like, memory_format=torch.contiguous_format) if own is None else own.contiguous()
    if ranks.several:
        torch.distributed.broadcast(basis, torch.distributed.get_global_rank(ranks.group, owner), group=ranks.group)
    return basis


def _read(path: Path, digest: str, matrices: Mapping[Place, Tensor]) -> dict[Place, Tensor] | None:
    """What the file has, if it is there. Raises InputError where it is of other factors."""
    if not path.exists():
        return None
    held = read_file(path, FORMAT)
    if held.get("of") != digest:
        raise InputError(f"{path} holds eigenvectors of other factors than those that were accumulated; it is left as "
                         "it is. Name another checkpoint, or remove its files to begin anew.")
    return {(name, side): basis.to(matrices[name, side].device) for name, side, basis in held["bases"]}
