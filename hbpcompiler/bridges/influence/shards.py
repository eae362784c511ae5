"""Scores of several processes, each with its part of the training data, as those of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.bridges.influence.samples import Counted
from hbpcompiler.errors import InputError, RankError, listing

STRIDED, CONTIGUOUS = "strided", "contiguous"
ORDERS = (STRIDED, CONTIGUOUS)
"""Of the ranks' samples in the whole data set: as `hbp.shard` deals them out, or one rank's behind the other's."""


@dataclass(frozen=True)
class Rows:
    """What one process has found, [F, n] by name."""

    values: Mapping[str, Tensor]
    counted: Counted
    batches: tuple[str, ...] = ()
    """A hash of each batch of this process."""


def together(own: Rows | None, failure: BaseException | None, group: Any, order: str) -> Rows:
    """The rows of all ranks, on each; of one process alone what it has. `failure` is what this one raised, if it did.

    Raises that again here, RankError on the others; InputError where the ranks' numbers of samples are not those of
    `hbp.shard` in that order.
    """
    if group is None:
        if failure is not None:
            raise failure
        assert own is not None
        if not own.counted.samples:
            raise InputError("the loader of the training data gave no samples")
        return own
    told: list[Any] = [None] * torch.distributed.get_world_size(group)
    text = "" if failure is None else f"{type(failure).__name__}: {failure}"
    try:
        torch.distributed.all_gather_object(told, (text, own), group=group)
    except RuntimeError as error:
        if failure is not None:
            raise failure from error
        raise RankError(f"this rank waited for the others in vain: one of them is gone ({error})") from error
    if failure is not None:
        raise failure
    failures = [f"rank {rank}: {other}" for rank, (other, _) in enumerate(told) if other]
    if failures:
        raise RankError(listing("scores failed on other ranks:", failures))
    return joined([rows for _, rows in told], order)


def joined(ranks: Sequence[Rows], order: str) -> Rows:
    """The ranks' columns in the order of the whole data set."""
    counts, world = [rows.counted.samples for rows in ranks], len(ranks)
    if not sum(counts):
        raise InputError("no rank's loader gave any samples")
    whole = Counted()
    for rows in ranks:
        whole += rows.counted
    values = {name: torch.cat([rows.values[name] for rows in ranks if rows.values], 1)
              for name in next(rows.values for rows in ranks if rows.values)}
    if order == STRIDED:
        if counts != [len(range(rank, whole.samples, world)) for rank in range(world)]:
            raise InputError(f"the ranks have {counts} samples, which are not those of hbp.shard(dataset, rank, "
                             f"world): pass order={CONTIGUOUS!r} if each rank's follow those of the rank before")
        place = torch.cat([torch.arange(rank, whole.samples, world, device="cpu") for rank in range(world)])
        values = {name: torch.empty_like(value).index_copy_(1, place, value) for name, value in values.items()}
    return Rows(values, whole)
