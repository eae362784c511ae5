"""Whether an operation works row by row, or among the rows that a mask picks.

Rows outside the mask are there, so what mixes rows is not what it would be. An operation is trusted only if it is known
to work element by element, names axes without that of the rows, or is on the list of those that do the same with each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hbpcompiler.compiler.trace.fx_graph.by_name import axes_of, names_of
from hbpcompiler.rules.shared.torch_operations import (
    BATCH_NORMS,
    EINSUM,
    MOVES,
    NORMS,
    NOT_OF_ROWS,
    OF_ROWS,
    PADS,
    PERMUTE,
    PLACES_OF_EACH,
    PRODUCTS_OF_MATRICES,
    SERIES,
    TILE,
)


def mixes_rows(called: Any, given: Mapping[str, Any], are_rows: Mapping[str, Sequence[int]], rank: int) -> bool:
    """Whether rows may meet each other. `are_rows` has, by name, of each tensor of an argument how many axes it has if
    it is rows, or 0; the most are `rank`, those of the result counted."""
    ranks = {name: min(filter(None, found)) for name, found in are_rows.items() if any(found)}
    kind, fewest = called.overloadpacket, min(ranks.values())
    named = {argument.name: given.get(argument.name, argument.default_value) for argument in called._schema.arguments
             if argument.name.startswith("dim") and kind is not TILE and argument.name not in NOT_OF_ROWS.get(kind, ())}
    if called is PERMUTE:
        return axes_of(named["dims"], rank)[0] != 0
    if kind in MOVES:
        return 0 in (*axes_of(given["source"], rank), *axes_of(given["destination"], rank))
    if kind in PLACES_OF_EACH and not {"self", "index"} <= ranks.keys():
        return True
    if not ranks.keys().isdisjoint(NOT_OF_ROWS.get(kind, ())):
        return True
    if named:
        return any(0 in axes_of(axes, rank) for axes in named.values())
    if torch.Tag.pointwise in called.tags:
        return False
    if "reduction" in names_of(called):
        return kind in SERIES
    if kind is EINSUM:
        return not _keeps_letter(given["equation"].replace(" ", ""), are_rows["tensors"])
    return kind not in OF_ROWS or fewest < OF_ROWS[kind] or _reaches_rows(kind, given, ranks, fewest)


def _reaches_rows(kind: Any, given: Mapping[str, Any], ranks: Mapping[str, int], fewest: int) -> bool:
    """Whether what an operation is given makes it work along the first axis, too."""
    if kind in NORMS:
        return len(given["normalized_shape"]) >= fewest
    if kind in PADS:
        return len(given["pad"]) // 2 >= fewest
    if kind in BATCH_NORMS:
        return given.get("training", False) is not False
    return kind in PRODUCTS_OF_MATRICES and "other" in ranks and (fewest < 3 or len({*ranks.values()}) > 1)


def _keeps_letter(equation: str, ranks: Sequence[int]) -> bool:
    """Whether the first letter of all rows, or "...", is that of the result, and of nothing else."""
    left, _, result = equation.replace("...", ".").partition("->")
    terms = [(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    lead, of_rows = result[:1], [(term, rank) for term, rank in terms if rank]
    others = [term[1:] if rank else term for term, rank in terms]
    if lead == "." and len({rank - len(term) for term, rank in of_rows}) > 1:  # aligned from behind
        return False
    return {term[:1] for term, _ in of_rows} == {lead} and lead not in "".join([*others, result[1:]])
