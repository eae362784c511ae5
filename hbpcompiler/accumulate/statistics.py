"""Numbers that the model or the loss make of a whole batch, as a mean over its samples: by them a total may depend on
how the data are cut. Divisors at the loss's end are counted (see `weigh`); whether others matter is seen by running
rows of several batches as one batch, and cut into two."""

from __future__ import annotations

import warnings

import torch

from hbpcompiler.accumulate.cut import Cut
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.match.losses.endings import adding_numbers
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.samples.meetings import meetings_of
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.fx_graph.numbers import has_batchs_size
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import TotalWarning, listing
from hbpcompiler.system.callers import level_of_caller

MOST = 16
"""Rows that are tried at once: many enough that a most frequent label, or a share of one, differs in their parts."""

BESIDE = "the loss is a sum over samples, and this adds a number that no sample has"


class Look:
    """At the rows of batches of one form, gathered: once there are two, and at each doubling of their number."""

    def __init__(self) -> None:
        self._rows: Batch | None = None
        self._next = 2

    def gather(self, batch: Batch) -> Batch | None:
        """The rows so far, if it is time to look at them."""
        if self._next > MOST:
            return None
        missing = MOST // 2 if self._rows is None else MOST - self._rows.samples
        own = batch.rows(min(missing, batch.samples))
        before = () if self._rows is None else self._rows.tensors
        joined = tuple(map(torch.cat, zip(before, own, strict=True))) if before else own
        self._rows = Batch(joined, batch.layout)
        return self._rows if self._rows.samples >= self._next else None

    def looked(self, found: bool) -> None:
        """At the rows; `found`: there is no need to look again."""
        assert self._rows is not None
        self._next = MOST + 1 if found else max(self._next, 1 << self._rows.samples.bit_length())
        if self._next > MOST:
            self._rows = None


def mixes(cut: Cut, rows: Batch) -> bool:
    """Whether what these rows come to is another where they are cut; at several places, since parts may agree by
    chance, as in their most frequent label."""
    places = {1, 2, rows.samples // 3, rows.samples // 2, rows.samples - 1}
    return not all(cut.adds_up(rows, first) for first in sorted(places & set(range(1, rows.samples))))


def statistics_of(built: Built) -> list[str]:
    """The places of what samples may meet in without a derivative, with one they are kept apart, or refused; and of
    numbers made of the batch's size, or that a sum over samples has beside them."""
    graph, rules = built.matched.graph, built.matched.rules
    sized = [f"{each.target} in {each.source}" for each in graph.operations if _is_of_size(each)]
    beside = adding_numbers(graph, rules) if built.matched.ending.kind == "sum" else []
    return list(dict.fromkeys([*meetings_of(graph, built.matched.active), *sized,
                               *(f"{each.target} in {each.source}: {BESIDE}" for each in beside)]))


def _is_of_size(operation: Operation) -> bool:
    """Whether it makes numbers of the batch's size, not only shapes."""
    if operation.tensors and not aten.is_pointwise(operation):
        return False
    return has_batchs_size(operation.attributes)


def warn_of_statistics(places: list[str]) -> None:
    """That rows cut into two batches do not come to what they come to as one."""
    warnings.warn(listing(
        "what these make of a whole batch, as a mean over its samples, is another for each batch, so that the total is "
        "not that of all samples as one batch:", places,
        "Make it of the whole data set beforehand, and let the data set bring it or keep it in a buffer."),
        TotalWarning, stacklevel=level_of_caller())
