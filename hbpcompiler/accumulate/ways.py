"""Lines of code that go another way for other batch sizes, as `if len(x) > 8:` does: a batch is then computed otherwise
than all samples as one batch would be. Whether that matters is seen by running rows in both ways."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hbpcompiler.accumulate.cut import Cut
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import TotalWarning, listing
from hbpcompiler.system.callers import level_of_caller

ROWS = 16
"""Of a batch, which are laid as often as there are samples needed."""
MOST_TRIED = 1024
"""Samples of which it is tried what they come to as one batch and as two."""
MOST_PROGRAMS = 16


@dataclass(frozen=True)
class _Met:
    """A batch that a program of some sizes alone has served."""

    compiled: Compiled
    built: Built
    beside: Mapping[str, Any]
    rows: Batch
    samples: int


class Ways:
    """The programs of a run, each with a batch that it served."""

    def __init__(self) -> None:
        self._met: dict[int, _Met] = {}

    def meet(self, compiled: Compiled, built: Built, batch: Batch, beside: Mapping[str, Any]) -> None:
        """A batch that has run."""
        if built.sizes.conditions and id(built) not in self._met and len(self._met) < MOST_PROGRAMS:
            rows = Batch(tuple(row.clone() for row in batch.rows(min(ROWS, batch.samples))), batch.layout)
            self._met[id(built)] = _Met(compiled, built, beside, rows, batch.samples)

    def look(self, total: int, cut: Callable[[Compiled, Mapping[str, Any]], Cut]) -> None:
        """Warn, once all samples are in, of lines that go another way for so many, if they make a difference."""
        lines, untried = dict[str, None](), False
        for met in self._met.values():
            other = met.built.sizes.excluding(total)
            if not other:
                continue
            together = self._samples(met, other)
            if together is None or not cut(met.compiled, met.beside).adds_up(_laid(met.rows, together), met.samples):
                lines |= dict.fromkeys(other)
                untried = untried or together is None
        if lines:
            doubt = ", unless both ways come to the same, which was not tried" if untried else ""
            warnings.warn(listing(
                "these go another way for a batch than for all samples as one batch, so that the total is not that of "
                f"all samples as one batch{doubt}:", list(lines),
                "Write them for any number of samples, or cut the data into batches of the size that is meant."),
                TotalWarning, stacklevel=level_of_caller())

    def _samples(self, met: _Met, other: list[str]) -> int | None:
        """More than in the batch, and few, for which these lines go the other way; None if there are too many."""
        sizes = range(met.samples + 1, MOST_TRIED + 1)
        return next((size for size in sizes if met.built.sizes.excluding(size) == other), None)


def _laid(rows: Batch, samples: int) -> Batch:
    """The rows one behind the other, again and again."""
    places = torch.arange(samples, device=rows.tensors[0].device) % rows.samples
    return Batch(tuple(tensor.index_select(0, places) for tensor in rows.tensors), rows.layout)
