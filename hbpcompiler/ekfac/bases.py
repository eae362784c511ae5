"""Eigenvectors of Kronecker factors, in float64, and their file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.accumulate.checkpoint import read_file, write_file
from hbpcompiler.accumulate.ranks import Ranks
from hbpcompiler.curvature.spread import eigenvectors
from hbpcompiler.curvature.symmetric import Symmetric, symmetrised
from hbpcompiler.errors import HbpError, InputError, RankError, listing
from hbpcompiler.system.digest import digest_of
from hbpcompiler.system.group import waiting

FORMAT = "hbpcompiler bases 2"


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


def eigenbases(factors: Mapping[str, Any], ranks: Ranks, checkpoint: Path | None) -> dict[str, Bases]:
    """Of A and B of each parameter, in their dtype; each is found by one rank, and all get the same.

    They are written to a file, and read from it where it is there: another run of eigh may turn signs, which would be
    other bases than those that a checkpoint of the second pass was made in. Raises InputError for a file of other
    factors, and for a factor that has no eigenvectors (it is not finite); RankError on the other ranks.
    """
    matrices = {(name, side): getattr(pair, side) for name, pair in factors.items() for side in ("A", "B")}
    path = None if checkpoint is None else ranks.own(checkpoint)
    known: dict[Place, Tensor] | None = None
    failure: HbpError | None = None
    try:
        known = None if path is None else _read(path, matrices)
    except HbpError as error:
        failure = error
    if all(agreed(ranks, "eigenvectors could not be read", failure, known is not None)):
        assert known is not None
        found = known
    else:
        found = _decomposed(matrices, ranks)
        if path is not None:
            held = [(*place, basis) for place, basis in found.items()]
            write_file(path, {"format": FORMAT, "of": digest_of(matrices.values()), "bases": held})
    return {name: Bases(found[name, "A"], found[name, "B"]) for name in factors}


def _decomposed(matrices: Mapping[Place, Tensor], ranks: Ranks) -> dict[Place, Tensor]:
    symmetric = {(name, side): Symmetric(symmetrised(matrix), f"factor {side} of {name!r}", 0.0)
                 for (name, side), matrix in matrices.items()}
    if ranks.several:
        return dict(zip(symmetric, eigenvectors(list(symmetric.values()), ranks.group), strict=True))
    found = {}
    for place in list(symmetric):
        matrix = symmetric.pop(place)  # with its float64 decomposition, once its own dtype has it
        found[place] = matrix.eigen.vectors.to(matrix.matrix.dtype)
    return found


def _read(path: Path, matrices: Mapping[Place, Tensor]) -> dict[Place, Tensor] | None:
    """What the file has, if it is there. Raises InputError where it is of other factors."""
    if not path.exists():
        return None
    held = read_file(path, FORMAT)
    if held.get("of") != digest_of(matrices.values()):
        raise InputError(f"{path} holds eigenvectors of other factors than those that were accumulated; it is left as "
                         "it is. Name another checkpoint, or remove its files to begin anew.")
    return {(name, side): basis.to(matrices[name, side].device) for name, side, basis in held["bases"]}


def agreed(ranks: Ranks, what: str, failure: HbpError | None, own: Any) -> list[Any]:
    """What each rank says. Raises this one's failure, and RankError for those of others."""
    said = ("" if failure is None else str(failure), own)
    told: list[Any] = [said]
    if ranks.several:
        told = [None] * ranks.world
        try:
            with waiting(ranks.rank):
                torch.distributed.all_gather_object(told, said, group=ranks.group)
        except RankError:
            if failure is None:
                raise
    if failure is not None:
        raise failure
    if failures := [f"rank {rank}: {text}" for rank, (text, _) in enumerate(told) if text]:
        raise RankError(listing(f"{what} on other ranks:", failures))
    return [item for _, item in told]
