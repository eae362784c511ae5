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
from hbpcompiler.accumulate.combine import is_spread
from hbpcompiler.accumulate.sums import MEANS, Key, Sums, check_together, dtype_of, is_divided
from hbpcompiler.accumulate.weigh import Weight
from hbpcompiler.errors import InputError, RankError, listing
from hbpcompiler.group import place_in, waiting
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
    shared_positions: dict[str, float]
    stored: dict[str, Stored]
    tensors: list[tuple[tuple[str, ...], tuple[int, ...]]]


class Ranks:
    """This process's place in a torch.distributed group; None: it is alone."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank, self.world = place_in(group) if group is not None else (0, 1)

    @property
    def several(self) -> bool:
        return self.group is not None

    def own(self, path: Path) -> Path:
        """This rank's file."""
        return path.with_name(f"{path.name}.rank{self.rank}") if self.several else path

    def together(self, sums: Sums, failure: BaseException | None) -> Sums:
        """The sums of all ranks, on each; `failure` is what this one raised, if it did.

        Raises that again here, and RankError on the others.
        """
        if not self.several:
            return sums
        try:
            with waiting(self.rank):
                told = self._told(sums, failure)
        except RankError:
            if failure is not None:
                raise failure from None
            raise
        if failure is not None:
            raise failure
        failures = [f"rank {rank}: {own.failure}" for rank, own in enumerate(told) if own.failure]
        if failures:
            raise RankError(listing("accumulation failed on other ranks:", failures))
        return self._added(sums, told)

    def _told(self, sums: Sums, failure: BaseException | None) -> list[_Own]:
        own = _Own("" if failure is None else f"{type(failure).__name__}: {failure}", sums.quantities, sums.samples,
                   sums.terms, sums.of_average, sums.first, sums.shared_positions, sums.stored,
                   [(tuple(key), tuple(tensor.shape)) for key, tensor in sums.totals.items()])
        told: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(told, own, group=self.group)
        return told

    def _added(self, sums: Sums, told: list[_Own]) -> Sums:
        model = next((own for own in told if own.first is not None), None)
        if model is None:
            raise InputError("no rank's loader gave any samples: there is nothing to accumulate")
        assert model.first is not None
        self._check(told, model)
        whole = Sums(sums.quantities, sums.dtype, sums.compensated)
        whole.first, whole.positions, whole.stored = model.first, dict(model.first.positions), model.stored
        whole.samples, whole.terms = sum(own.samples for own in told), sum(own.terms for own in told)
        for own in told:
            for parameter, share in own.shared_positions.items():
                assert own.first is not None
                share *= own.first.positions[parameter] / whole.positions[parameter]
                whole.shared_positions[parameter] = whole.shared_positions.get(parameter, 0.0) + share
        whole.of_average = sum(own.of_average for own in told)
        with waiting(self.rank):
            self._add({Key(*parts): shape for parts, shape in model.tensors}, sums, whole)
        return whole

    def _check(self, told: list[_Own], model: _Own) -> None:
        findings = []
        for rank, own in enumerate(told):
            if own.first is None:
                continue
            assert model.first is not None
            check_together(own.quantities, model.first, own.first)
            if own.quantities != model.quantities or own.tensors != model.tensors:
                findings.append(f"rank {rank}: {', '.join(own.quantities)} of {len(own.tensors)} tensors")
        if findings:
            raise InputError(listing("the ranks accumulate different quantities or models:", findings))

    def _add(self, shapes: dict[Key, tuple[int, ...]], sums: Sums, whole: Sums) -> None:
        """All that adds up, with the means of what is spread; then its squares about the mean of all.

        Totals are written over, so that beside them there are but one bucket and the means.
        """
        for key, shape in shapes.items():
            own = self._own_tensor(key, shape, sums)
            if key.quantity == MEANS:
                whole.totals[key] = own * (sums.samples / whole.samples)
            elif not is_spread(key):
                if key in sums.lost:
                    own.add_(sums.lost.pop(key))
                whole.totals[key] = own.mul_(_of_positions(key, sums, whole))
        all_reduce(list(whole.totals.values()), self.group)
        spread = [key for key in shapes if is_spread(key) and key.quantity != MEANS]
        for key in spread:
            of_mean = Key(MEANS, key.parameter, "")
            away = self._own_tensor(of_mean, shapes[of_mean], sums).sub_(whole.totals[of_mean])
            squares = self._own_tensor(key, shapes[key], sums)
            whole.totals[key] = squares.addcmul_(away, away, value=sums.samples)
        all_reduce([whole.totals[key] for key in spread], self.group)

    def _own_tensor(self, key: Key, shape: tuple[int, ...], sums: Sums) -> Tensor:
        """This rank's, to be written to; zeros where it had no samples."""
        held = sums.totals.get(key)
        if held is not None:
            return held
        nccl = torch.distributed.get_backend(self.group) == "nccl"
        device = torch.cuda.current_device() if nccl else "cpu"
        return torch.zeros(shape, dtype=dtype_of(key, sums.dtype), device=device)


def _of_positions(key: Key, sums: Sums, whole: Sums) -> float:
    if not is_divided(key) or key.parameter not in sums.positions:
        return 1.0
    return sums.positions[key.parameter] / whole.positions[key.parameter]
