"""The sums of several parts as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hbpcompiler.accumulate.counts import check_counted, counts_among
from hbpcompiler.accumulate.pieces import merge_spread
from hbpcompiler.accumulate.sums import DIVIDED, MEANS, Key, Sums, check_together
from hbpcompiler.quantities import QUANTITIES, SPREAD


def combined(parts: Sequence[Sums]) -> Sums:
    """New sums; the parts keep theirs. Those without samples add nothing. Raises InputError where they do not add up.
    """
    for name in counts_among(parts[0].quantities):
        check_counted(name, [part.parameters(name) for part in parts if part.samples])
    whole = Sums(parts[0].quantities, parts[0].dtype, parts[0].compensated)
    for part in parts:
        if part.first is not None and part.samples:
            _join(whole, part)
    return whole


def _join(whole: Sums, part: Sums) -> None:
    if whole.first is None:
        whole.first = part.first
    whole.positions = {**part.positions, **whole.positions}
    whole.stored = {**part.stored, **whole.stored}
    assert whole.first is not None
    assert part.first is not None
    check_together(whole.quantities, whole.first, part.first)
    for key, total in part.totals.items():
        if is_spread(key):
            continue
        factor = _rescaled(whole, part, key)
        if key in whole.totals:
            whole.totals[key].add_(total, alpha=factor)
        else:
            whole.totals[key] = total * factor if factor != 1 else total.clone()
    for key, lost in part.lost.items():
        factor = _rescaled(whole, part, key)
        whole.lost[key] = whole.lost[key].add_(lost, alpha=factor) if key in whole.lost else lost * factor
    _join_spread(whole, part)
    for parameter, share in part.shared_positions.items():
        ratio = part.positions[parameter] / whole.positions[parameter]
        whole.shared_positions[parameter] = whole.shared_positions.get(parameter, 0.0) + share * ratio
    for parameter, samples in part.samples_with.items():
        whole.samples_with[parameter] = whole.samples_with.get(parameter, 0) + samples
    whole.samples += part.samples
    whole.terms += part.terms
    whole.of_average += part.of_average


def is_spread(key: Key) -> bool:
    """Whether it is merged about a mean, or such a mean."""
    return key.quantity == MEANS or (key.quantity in QUANTITIES and QUANTITIES[key.quantity].adds == (SPREAD,))


def is_divided(key: Key) -> bool:
    """Whether this tensor was divided by numbers of positions, batch by batch."""
    quantity = QUANTITIES.get(key.quantity)
    if quantity is None or not quantity.fields:
        return False
    return dict(zip(quantity.fields, quantity.adds, strict=True)).get(key.field) in DIVIDED


def _rescaled(whole: Sums, part: Sums, key: Key) -> float:
    """Sums over positions count them in those of the first batch."""
    over = is_divided(key) and key.parameter in part.positions
    return part.positions[key.parameter] / whole.positions[key.parameter] if over else 1.0


def _join_spread(whole: Sums, part: Sums) -> None:
    """A parameter that only one of them reaches has gradients of zero in the other."""
    for key in dict.fromkeys([*whole.totals, *part.totals]):
        if not is_spread(key) or key.quantity == MEANS:
            continue
        mean = Key(MEANS, key.parameter, "")
        if not whole.samples:
            whole.totals[key], whole.totals[mean] = part.totals[key].clone(), part.totals[mean].clone()
            continue
        like = part.totals.get(key, whole.totals.get(key))
        assert like is not None
        for own in (key, mean):
            if own not in whole.totals:
                whole.totals[own] = torch.zeros_like(like)
        nothing = like.new_zeros(()).expand(like.shape)
        merge_spread(whole.totals[key], whole.totals[mean], whole.samples,
                     part.totals.get(key, nothing), part.totals.get(mean, nothing), part.samples)
