"""Draws by which a total depends on how the data are cut: the user is warned of them, with their lines.

Some belong to no sample, as one number for a whole batch. Others are drawn for samples, but then moved: a flip or a
transposed view of noise hands it to other samples, and to which, depends on the batch. What a program does with its
draws is seen by running it: some rows as one batch, and cut into two, must give the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.accumulate.keys import keys_of
from hbpcompiler.accumulate.sums import Sums
from hbpcompiler.accumulate.weigh import Weight
from hbpcompiler.arguments import without_weights
from hbpcompiler.callers import level_of_caller
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.program.by_sample import draws_of
from hbpcompiler.compiler.program.nodes import called
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import InputError, TotalWarning, listing

CUT = (2, 4)
"""Rows of the two parts: a reversed order gives the first row another draw in them than in the whole."""
NOISE, LEAST = 3e-4, 1e-5
"""Relative and absolute: more than rounding in single precision makes, less than noise."""


def warn_of_draws(built: Built, left: Sequence[str]) -> None:
    """That these nodes draw what belongs to no sample."""
    _warn("what these draw belongs to no sample, and is drawn anew for each batch, so that the total depends on how "
          "the data are cut:", _places(built, left),
          "Draw along the axis of the samples, or let the data set bring the noise.")


def own_draws(built: Built) -> list[str]:
    """Names of the draws that are the model's or the loss's own, not those of labels by a quantity."""
    own = {operation.short for operation in built.matched.graph.operations}
    return [name for name in map(called, draws_of(built.draft.graph)) if name in own]


def warn_of_moves(built: Built) -> None:
    """That the model's own draws do not stay with their samples."""
    _warn("what is drawn here is moved from sample to sample, or mixed, before it meets the data, so that the total "
          "depends on how the data are cut:", _places(built, own_draws(built)),
          "Draw in the order of the samples, torch.rand(N, ...) with N the first axis, and leave that axis as it is "
          "(no flip, no transposed view, no index or sum over it), or let the data set bring the noise.")


def _places(built: Built, names: Sequence[str]) -> list[str]:
    """Lines of the model that draw so; names of what is nowhere but in the program."""
    places = [f"{operation.target} in {operation.source}" for operation in built.matched.graph.operations
              if operation.short in names]
    known = {place.partition(" in ")[0].partition(".")[2] for place in places}
    places += [f"{name} in the program" for name in names if name not in known]
    return list(dict.fromkeys(places))


def _warn(head: str, places: Sequence[str], advice: str) -> None:
    warnings.warn(listing(head, places, advice), TotalWarning, stacklevel=level_of_caller())


@dataclass(frozen=True)
class Cut:
    """Rows of a batch, as one batch and as two, with the same keys for their draws."""

    compiled: Compiled
    batch: Batch
    beside: Mapping[str, Any]
    weigh: Callable[[Batch, Built], Weight]

    def adds_up(self, with_loss: bool) -> bool:
        """Whether outputs, and the loss if the parts' terms are known, are those of the parts but for rounding; True
        where these rows cannot be tried."""
        rows = self.batch.rows(sum(CUT))
        ends = [0, *accumulate(CUT)]
        parts = [tuple(row[start:end] for row in rows) for start, end in pairwise(ends)]
        try:
            whole, loss = self._run([rows], with_loss)
            apart, loss_apart = self._run(parts, with_loss)
        except InputError:
            return True
        of_loss = math.isclose(loss, loss_apart, rel_tol=NOISE, abs_tol=LEAST) or math.isnan(loss)
        return of_loss and all(map(_are_alike, whole, apart))

    def _run(self, parts: Sequence[tuple[Tensor, ...]], with_loss: bool) -> tuple[list[Tensor | None], float]:
        """The rows of each output that has rows for samples in front, and what the losses of all parts add up to."""
        keys = keys_of(0, 0, range(sum(CUT))).to(self.batch.tensors[0].device)
        outputs: list[list[Tensor]] = []
        sums = Sums((), torch.float64 if keys.device.type != "mps" else torch.float32, False)
        done = 0
        for rows in parts:
            part = Batch(rows, self.batch.layout)
            own = keys[done : done + part.samples]
            done += part.samples
            built, result = self.compiled._ran(part, without_weights(self.beside), keys=partial(_given, own))
            outputs.append([getattr(result, name) for name in built.fields])
            if with_loss:
                sums.add(result, built.stored, self.weigh(part, built))
        counts = [len(part[0]) for part in parts]
        return [_rows(tensors, counts) for tensors in zip(*outputs, strict=True)], \
            float(sums.loss) if with_loss else 0.0


def _given(keys: Tensor, batch: Batch) -> Tensor:
    return keys


def _rows(tensors: Sequence[Tensor], counts: Sequence[int]) -> Tensor | None:
    """Of one output's parts; None where their first axis does not count samples."""
    in_front = all(tensor.dim() and len(tensor) == count for tensor, count in zip(tensors, counts, strict=True))
    return torch.cat(list(tensors)) if in_front else None


def _are_alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or not one.is_floating_point():
        return True
    size = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=NOISE * size, equal_nan=True)
