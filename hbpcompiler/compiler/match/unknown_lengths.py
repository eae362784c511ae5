"""Lengths that only values decide: how many elements a mask picks is known to no program before it runs."""

from __future__ import annotations

from hbpcompiler.compiler.trace.graph import Graph, N
from hbpcompiler.errors import ModelError, listing


def refuse_unknown_lengths(graph: Graph) -> None:
    """Raise ModelError that names the operations which make a length of another symbol than the batch's size."""
    found = [operation for operation in graph.operations
             if any(getattr(length, "free_symbols", set()) - {N} for length in operation.output.shape)]
    if not found:
        return
    places = dict.fromkeys(f"{operation.short} in {operation.source}" for operation in found)
    raise ModelError(listing(
        "The model cannot be compiled: how many elements are picked depends on values (a mask, nonzero):", list(places),
        "Pick by whole numbers, h[:, index] with index = mask.nonzero()[:, 0] made outside and kept in a buffer; or "
        "keep all elements, as in torch.where(mask, h, 0)."))
