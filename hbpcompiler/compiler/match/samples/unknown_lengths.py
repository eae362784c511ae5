"""Lengths that only values decide: how many elements a mask picks is known to no program before it runs."""

from __future__ import annotations

import torch

from hbpcompiler.compiler.trace.graph import Graph, N, Operation
from hbpcompiler.errors import ModelError, listing
from hbpcompiler.rules.shared.torch_operations import PICKS, TRUE_PLACES

_PICKS, _PLACES = frozenset(map(str, PICKS)), frozenset(map(str, TRUE_PLACES))


def refuse_unknown_lengths(graph: Graph) -> None:
    """Raise ModelError that names the operations which make a length of another symbol than the batch's size."""
    found = [operation for operation in graph.operations
             if any(map(_is_unknown, operation.output.shape)) or _picks_by_truth(operation)]
    if not found:
        return
    places = dict.fromkeys(f"{operation.plain} in {operation.source}{_of_samples(operation)}" for operation in found)
    raise ModelError(listing(
        "The model cannot be compiled: how many elements are picked depends on values (a mask, nonzero):", list(places),
        "What a mask picks may be worked on row by row, added up, averaged, given to a loss function, or put back by "
        "the same mask, out[mask] = f(h[mask]). For anything else keep all elements, as in torch.where(mask, h, 0); or "
        "pick by whole numbers, h[:, index] with index = mask.nonzero()[:, 0] made outside and kept in a buffer."))


def _picks_by_truth(operation: Operation) -> bool:
    """Whether a mask says how many, though what comes after, a product with so many, says how many it has to be."""
    by_mask = any(value.dtype is torch.bool for slot, value in operation.tensors.items() if slot != "self")
    called = f"{operation.target}.{operation.overload or 'default'}"
    return called in _PLACES or (called in _PICKS and by_mask)


def _is_unknown(length: object) -> bool:
    return bool(getattr(length, "free_symbols", set()) - {N})


def _of_samples(operation: Operation) -> str:
    """Words for what picks some of the batch's samples, whose number is a program's own."""
    shape = operation.output.shape
    of_samples = any(value.batched and len(value.shape) == len(shape) and value.shape[1:] == shape[1:]
                     for value in operation.tensors.values())
    return ", which picks samples: keep all of them" if of_samples and shape and _is_unknown(shape[0]) else ""
