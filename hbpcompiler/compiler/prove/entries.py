"""Which entries of a diagonal are compared: for each of them the model is differentiated twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.twin import TWINS

ENTRIES = 4
"""At each parameter, unless that is too much work."""
WORK = 2 * 10**8
"""How many entries times numbers in all parameters; but `LEAST` entries in any case."""
LEAST = 12
SMALL = 16
"""Parameters of so many numbers are compared whole."""


def drawn_entries(values: Mapping[str, Mapping[str, Any]], diagonals: Sequence[str], candidate: Candidate,
                  ) -> dict[str, list[int]]:
    """Entries of parameters: where a diagonal is largest, then others at random; all parameters at first, as far as the
    work allows."""
    largest: dict[str, int] = {}
    sizes = {name: parameter.numel() for name, parameter in candidate.model.named_parameters()}
    for quantity in diagonals:
        for name, value in values[quantity].items():
            if TWINS.get(quantity, quantity) in ("diag_ggn", "diag_h"):
                largest[name] = int(value.abs().argmax())
            largest.setdefault(name, 0)
    generator = Random(0)
    names = generator.sample(sorted(largest), len(largest))
    entries: dict[str, list[int]] = {}
    left = max(LEAST, WORK // sum(sizes.values()))
    for turn in range(SMALL):
        for name in names:
            size, own = sizes[name], entries.setdefault(name, [])
            if left == 0 or len(own) == size or (size > SMALL and turn >= ENTRIES):
                continue
            entry = largest[name] if not turn else generator.randrange(size)
            if size <= SMALL:
                entry = turn
            if entry not in own:
                own.append(entry)
                left -= 1
    return {name: own for name, own in entries.items() if own}
