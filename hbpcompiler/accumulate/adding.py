"""Totals that a batch's program adds to itself, one result at a time: no batch's results lie beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from hbpcompiler.accumulate.sums import Key, Sums, check_together
from hbpcompiler.accumulate.weigh import Weight
from hbpcompiler.calls.into import Into, Read
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.adding import Slot
from hbpcompiler.quantities import QUANTITIES, SPREAD


@dataclass
class Adding:
    """For one batch's call: the totals that exist and only grow. Variances are merged, and compensated totals kept,
    by `Sums.add`, and what does not fit is refused there."""

    sums: Sums
    weigh: Callable[[Built], Weight]
    weight: Weight | None = None
    """What the batch counts."""
    added: list[Key] = field(default_factory=list)
    """The totals that the batch's results are in once it has run."""

    def fitting(self, built: Built, samples: Tensor, read: Read) -> Into:
        """The totals, and how much of this batch's results each gets."""
        weight = self.weight = self.weigh(built)
        if self.sums.first is not None:
            check_together(self.sums.quantities, self.sums.first, weight)
        given: dict[Slot, Tensor] = {}
        shares: dict[Slot, float] = {}
        triangles = set[Slot]()
        merged = any(SPREAD in QUANTITIES[name].adds for name in self.sums.quantities)
        for slot, node in built.slots.items():
            total, how = self.sums.totals.get(Key(*slot)), _how(slot)
            if merged and slot.quantity == "grad":
                continue  # this batch's is what its variances are merged by
            if total is None or not how or list(total.shape) != [*map(_length, meta.shape(node) or ())]:
                continue
            factor = self.sums.factor(how, slot.parameter, weight)
            if not factor:
                continue  # what counts for nothing may be NaN
            symmetric = total.dim() == 2 and slot.field in QUANTITIES[slot.quantity].symmetric
            if symmetric and total.device.type == "cpu":
                triangles.add(slot)
                total = self.sums.partials.of(Key(*slot), total, meta.dtype(node))
            given[slot] = total
            shares[slot] = factor
        self.added = [Key(*slot) for slot in given]
        return Into(given, 1.0, shares, {}, frozenset(triangles))


def _length(text: str) -> int:
    return int(text) if text.isdigit() else -1


def _how(slot: Slot) -> str:
    """How a result adds up, where that is by a factor alone."""
    quantity = QUANTITIES[slot.quantity]
    if not quantity.adds or SPREAD in quantity.adds:
        return ""
    return dict(zip(quantity.fields or ("",), quantity.adds, strict=True)).get(slot.field, "")
