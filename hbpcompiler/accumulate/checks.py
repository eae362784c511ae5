"""What cannot be totals: quantities that do not add up, that no batch has, or whose averages are over nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.accumulate.sums import Sums
from hbpcompiler.errors import InputError, OptionError, listing
from hbpcompiler.quantities import QUANTITIES


def check_adds(quantities: Mapping[str, Any] | tuple[str, ...]) -> None:
    """InputError that lists all that do not add up."""
    findings = [f"{name}: {QUANTITIES[name].instead or 'it is not a sum over samples'}" for name in quantities
                if not QUANTITIES[name].adds]
    if findings:
        raise InputError(listing("These quantities do not add up over batches:", findings))


def check_reached(sums: Sums) -> None:
    """OptionError for quantities of which no batch reached a parameter."""
    empty = [name for name in sums.quantities if not sums.parameters(name)]
    if empty:
        raise OptionError(f"no trainable parameter that is chosen for {', '.join(empty)} reaches the loss with any "
                          "batch")


def check_has_average(sums: Sums) -> None:
    """InputError where all labels are ignored, so that a mean has no terms; or where all samples have the weight zero,
    and something is an average over them."""
    if sums.is_mean and not sums.terms:
        raise InputError("the data set's loss is a mean over no terms: all its targets are ignored, or count is 0")
    averages = [name for name in sums.quantities if QUANTITIES[name].averages]
    if averages and not sums.of_average:
        raise InputError(f"all weights of the data set are zero, so that {', '.join(averages)} has no value: it has "
                         "averages over the samples")
