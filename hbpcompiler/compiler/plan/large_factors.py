"""Kronecker factors that nobody could hold, a vocabulary's above all: refused at once, with what to ask for instead."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.closings import WHOLE_BLOCKS, without_features
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import UnsupportedOpError, listing
from hbpcompiler.quantities import INPUT_FACTOR, QUANTITIES, REDUCED_INPUT_FACTOR, Closing
from hbpcompiler.quantities.chosen import closings_of
from hbpcompiler.rule import Rule

MOST = 6
"""So many patterns are shown."""
OF_INPUTS = frozenset({INPUT_FACTOR, REDUCED_INPUT_FACTOR})


def check_factors(matched: Matched, wanted: frozenset[Closing], asked: Sequence[str], rows: int) -> None:
    """UnsupportedOpError that names all parameters whose factors would have more rows than this, and why."""
    found: dict[str, str] = {}
    kinds_asked: set[str] = set()
    for operation in matched.graph.operations:
        for key, why, kinds in _large(matched, operation, wanted, rows):
            found.setdefault(key, why)
            kinds_asked |= kinds
    if not found:
        return
    names = [name for name in asked if any(closing.kind in kinds_asked for closing in QUANTITIES[name].needs)]
    keys = [value.key for value in matched.trainable]
    patterns = patterns_without(keys, found.keys())
    shown = ", ".join(map(repr, patterns[:MOST])) + (", ..." if len(patterns) > MOST else "")
    raise UnsupportedOpError(
        listing(f"{', '.join(names)} would have factors that are too large:", list(found.values()),
                f"Leave these parameters out, as in quantities={{{names[0]!r}: [{shown}], 'grad': '*'}}, freeze them "
                "(requires_grad=False), or ask for diagonals of them: diag_ggn_mc, second_moment"))


def _large(matched: Matched, operation: Operation, wanted: frozenset[Closing],
           rows: int) -> Iterator[tuple[str, str, frozenset[str]]]:
    """(parameter, what is too large about it, the closings that are)."""
    rule = matched.rules.get(operation.name)
    if operation.name not in matched.active or not isinstance(rule, Rule):
        return
    op = matched.static(operation)
    params = rule.params(op)
    for slot, parameter in operation.tensors.items():
        if not parameter.trainable or slot not in params:
            continue
        kinds = frozenset(closing.kind for closing in closings_of(wanted, parameter.key))
        size, where = math.prod(parameter.sample_shape), f"parameter '{parameter.key}' in {operation.source}"
        if params[slot].operand is None and size > rows and kinds & WHOLE_BLOCKS:
            yield parameter.key, (f"{where} {without_features(operation)}: its Kronecker factor would be its full "
                                  f"block of {size} x {size} numbers"), WHOLE_BLOCKS
        elif params[slot].index is not None and (length := parameter.sample_shape[0]) > rows and kinds & OF_INPUTS:
            yield parameter.key, (f"{where} has a row for each index: its factor A would have {length} x {length} "
                                  "numbers"), OF_INPUTS


def patterns_without(keys: Sequence[str], refused: Collection[str]) -> list[str]:
    """Shell patterns of all but some names: of whole modules where none of theirs is among those."""
    found: dict[str, None] = {}
    for key in keys:
        if key in refused:
            continue
        parts = key.split(".")
        modules = [".".join(parts[:count]) for count in range(1, len(parts))]
        free = [module for module in modules if not any(name.startswith(f"{module}.") for name in refused)]
        found[f"{free[0]}.*" if free else key] = None
    return list(found)
