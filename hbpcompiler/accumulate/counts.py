"""Quantities that count entries: zeros of a parameter that is not reached are not among what was counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from hbpcompiler.errors import InputError
from hbpcompiler.quantities import COUNTS, QUANTITIES


@cache
def counts_among(quantities: tuple[str, ...]) -> tuple[str, ...]:
    """Those that count entries."""
    return tuple(name for name in quantities if name in QUANTITIES and COUNTS in QUANTITIES[name].adds)


def check_counted(quantity: str, reached: Sequence[Iterable[str]]) -> None:
    """InputError where one part of the data counted parameters that another does not reach."""
    parts = [set(names) for names in reached]
    others = sorted(parts[0].union(*parts) - parts[0].intersection(*parts)) if parts else []
    if others:
        raise InputError(f"{quantity} cannot be added up: some batches reach {', '.join(others)}, and some do not, "
                         "whose zeros are not counted. Accumulate it of parameters that all batches reach")
