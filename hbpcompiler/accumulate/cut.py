"""Rows of batches as one batch, and cut into two: a total must be the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.keys import keys_of
from hbpcompiler.accumulate.sums import Sums
from hbpcompiler.accumulate.weigh import Weight
from hbpcompiler.arguments import without_weights
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.system.threads import TRACING


@dataclass(frozen=True)
class Cut:
    """Runs of rows, as one batch and as two, with the same keys for their draws."""

    compiled: Compiled
    beside: Mapping[str, Any]
    weigh: Callable[[Batch, Built], Weight]
    with_loss: bool
    """Whether the parts' terms are known, so that their losses can be added up."""

    def adds_up(self, batch: Batch, first: int) -> bool:
        """Whether outputs and loss of these rows are those of the first few and of the rest, but for rounding; True
        where they cannot be tried."""
        parts = [tuple(row[:first] for row in batch.tensors), tuple(row[first:] for row in batch.tensors)]
        try:
            with TRACING, warnings.catch_warnings(action="ignore"):  # of a part of one row, which has no deviation
                whole, loss, rounding = self._run(batch, [batch.tensors])
                apart, loss_apart, _ = self._run(batch, parts)
        except Exception:  # a model or a loss need not take so few rows, and says so in its own words
            return True
        if math.isfinite(loss) and not math.isfinite(loss_apart):  # over the ones of a mask that picks none
            return True
        of_loss = math.isclose(loss, loss_apart, rel_tol=rounding, abs_tol=rounding / 10) or not math.isfinite(loss)
        return of_loss and all(_are_alike(one, other, rounding) for one, other in zip(whole, apart, strict=True))

    def _run(self, batch: Batch, parts: Sequence[tuple[Tensor, ...]]) -> tuple[list[Tensor | None], float, float]:
        """The rows of each output that has rows for samples in front, what the losses of all parts add up to, and how
        far rounding may reach: half of the loss's digits. Of parts one of which has no finite loss, infinity."""
        keys = keys_of(0, 0, range(batch.samples)).to(batch.tensors[0].device)
        outputs: list[list[Tensor]] = []
        sums = Sums((), torch.float64 if keys.device.type != "mps" else torch.float32, False)
        done, rounding, finite = 0, 0.0, True
        for rows in parts:
            part = Batch(rows, batch.layout)
            own = keys[done : done + part.samples]
            done += part.samples
            built, result = self.compiled._ran(part, without_weights(self.beside), keys=partial(_given, own))
            outputs.append([getattr(result, name) for name in built.fields])
            rounding = math.sqrt(torch.finfo(result.loss.dtype).eps)
            finite = finite and bool(result.loss.isfinite())
            if self.with_loss:
                sums.add(result, built.stored, self.weigh(part, built))
        counts = [len(part[0]) for part in parts]
        return [_rows(tensors, counts) for tensors in zip(*outputs, strict=True)], \
            math.inf if not finite else float(sums.loss) if self.with_loss else 0.0, rounding


def _given(keys: Tensor, batch: Batch) -> Tensor:
    return keys


def _rows(tensors: Sequence[Tensor], counts: Sequence[int]) -> Tensor | None:
    """Of one output's parts; None where their first axis does not count samples."""
    in_front = all(tensor.dim() and len(tensor) == count for tensor, count in zip(tensors, counts, strict=True))
    return torch.cat(list(tensors)) if in_front else None


def _are_alike(one: Tensor | None, other: Tensor | None, rounding: float) -> bool:
    if one is None or other is None or not one.is_floating_point():
        return True
    size = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=rounding * size, equal_nan=True)
