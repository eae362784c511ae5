"""Several processes, each with its part of the data: nothing is exchanged before the end, so that ranks may have
different numbers of batches; then all get the totals of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.buckets import all_reduce
from hbpcompiler.accumulate.checkpoint import Header
from hbpcompiler.accumulate.combine import is_divided, is_spread
from hbpcompiler.accumulate.counts import check_counted, counts_among
from hbpcompiler.accumulate.sums import MEANS, Key, Sums, check_together, dtype_of
from hbpcompiler.accumulate.weigh import Weight
from hbpcompiler.errors import InputError, RankError, listing
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.system.group import place_in, waiting
from hbpcompiler.values import Stored


@dataclass(frozen=True)
class _Own:
    """What a rank tells the others before tensors are added."""

    failure: str
    quantities: tuple[str, ...]
    samples: int
    terms: float
    of_average: float
    first: Weight | None
    positions: dict[str, int]
    shared_positions: dict[str, float]
    samples_with: dict[str, int]
    stored: dict[str, Stored]
    tensors: list[tuple[tuple[str, ...], tuple[int, ...]]]
    header: Header


class Ranks:
    """This process's place in a torch.distributed group; None: it is alone."""

    def __init__(self, group: Any, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.group, self.limits = group, limits
        self.rank, self.world = place_in(group) if group is not None else (0, 1)

    @property
    def several(self) -> bool:
        return self.group is not None

    def own(self, path: Path) -> Path:
        """This rank's file."""
        return path.with_name(f"{path.name}.rank{self.rank}") if self.several else path

    def together(self, sums: Sums, failure: BaseException | None, header: Header, device: torch.device) -> Sums:
        """The sums of all ranks, on each, on the device of its model; `failure` is what this one raised, if it did.

        Raises that again here, and RankError on the others; InputError where what they accumulate is not the same.
        """
        if not self.several:
            return sums
        try:
            with waiting(self.rank):
                told = self._told(sums, failure, header)
        except RankError:
            if failure is not None:
                raise failure from None
            raise
        if failure is not None:
            raise failure
        failures = [f"rank {rank}: {own.failure}" for rank, own in enumerate(told) if own.failure]
        if failures:
            raise RankError(listing("accumulation failed on other ranks:", failures))
        return self._added(sums, told, device)

    def _told(self, sums: Sums, failure: BaseException | None, header: Header) -> list[_Own]:
        own = _Own("" if failure is None else f"{type(failure).__name__}: {failure}", sums.quantities, sums.samples,
                   sums.terms, sums.of_average, sums.first, sums.positions, sums.shared_positions, sums.samples_with,
                   sums.stored, [(tuple(key), tuple(tensor.shape)) for key, tensor in sums.totals.items()], header)
        told: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(told, own, group=self.group)
        return told

    def _added(self, sums: Sums, told: list[_Own], device: torch.device) -> Sums:
        first = next((own.first for own in told if own.first is not None), None)
        self._check(told, first)
        if first is None:
            raise InputError("no rank's loader gave any samples: there is nothing to accumulate")
        whole = Sums(sums.quantities, sums.dtype, sums.compensated)
        whole.first = first
        whole.samples, whole.terms = sum(own.samples for own in told), sum(own.terms for own in told)
        whole.of_average = sum(own.of_average for own in told)
        for own in told:
            whole.stored = {**own.stored, **whole.stored}
            whole.positions = {**own.positions, **whole.positions}
            for parameter, share in own.shared_positions.items():
                share *= own.positions[parameter] / whole.positions[parameter]
                whole.shared_positions[parameter] = whole.shared_positions.get(parameter, 0.0) + share
                others = whole.samples_with.get(parameter, 0)
                whole.samples_with[parameter] = others + own.samples_with[parameter]
        shapes = {Key(*parts): shape for own in told for parts, shape in own.tensors}
        _check_counts(told)
        with waiting(self.rank):
            self._add(shapes, sums, whole, device)
        return whole

    def _check(self, told: list[_Own], first: Weight | None) -> None:
        findings = []
        for rank, own in enumerate(told):
            here, there = told[0].header, own.header
            texts = here.differences(there, of_run=False)
            if here.seed != there.seed:
                texts.append(f"seed: {here.seed} here, {there.seed} there")
            findings += [f"rank {rank}: {text}" for text in texts]
        if findings:
            raise InputError(listing("the ranks do not accumulate the same. Differences, rank 0's value and theirs:",
                                     findings))
        for own in told:
            if first is not None and own.first is not None:
                check_together(own.quantities, first, own.first)

    def _add(self, shapes: dict[Key, tuple[int, ...]], sums: Sums, whole: Sums, device: torch.device) -> None:
        """All that adds up, with the means of what is spread; then its squares about the mean of all.

        Totals are written over, so that beside them there are but one bucket and the means.
        """
        for key, shape in shapes.items():
            own = _own_tensor(key, shape, sums, device)
            if key.quantity == MEANS:
                whole.totals[key] = own * (sums.samples / whole.samples)
            elif not is_spread(key):
                if key in sums.lost:
                    own.add_(sums.lost.pop(key))
                whole.totals[key] = own.mul_(_of_positions(key, sums, whole))
        all_reduce(list(whole.totals.values()), self.group, most=self.limits.message_bytes)
        spread = [key for key in shapes if is_spread(key) and key.quantity != MEANS]
        for key in spread:
            of_mean = Key(MEANS, key.parameter, "")
            away = _own_tensor(of_mean, shapes[of_mean], sums, device).sub_(whole.totals[of_mean])
            squares = _own_tensor(key, shapes[key], sums, device)
            whole.totals[key] = squares.addcmul_(away, away, value=sums.samples)
        all_reduce([whole.totals[key] for key in spread], self.group, most=self.limits.message_bytes)


def _own_tensor(key: Key, shape: tuple[int, ...], sums: Sums, device: torch.device) -> Tensor:
    """This rank's, to be written to; zeros where it had no samples."""
    held = sums.totals.get(key)
    if held is not None:
        return held
    return torch.zeros(shape, dtype=dtype_of(key, sums.dtype), device=device)


def _check_counts(told: list[_Own]) -> None:
    """InputError where one rank has counts of parameters that another's batches do not reach."""
    for name in counts_among(told[0].quantities):
        check_counted(name, [[Key(*parts).parameter for parts, _ in own.tensors if parts[0] == name]
                             for own in told if own.samples])


def _of_positions(key: Key, sums: Sums, whole: Sums) -> float:
    if not is_divided(key) or key.parameter not in sums.positions:
        return 1.0
    return sums.positions[key.parameter] / whole.positions[key.parameter]
