"""Where samples meet without a derivative: with one they are kept apart, or refused."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.samples.sample_wise import order_of_result
from hbpcompiler.compiler.trace.graph import Graph, N, Operation


def meetings_of(graph: Graph, active: AbstractSet[str]) -> list[str]:
    """The places of these operations. `active` are the values that derivatives reach."""
    found = [each for each in graph.operations if each.name not in active and _meets(each)]
    return list(dict.fromkeys(f"{each.target} in {each.source}" for each in found))


def _meets(operation: Operation) -> bool:
    if not aten.is_torchs(operation) or not any(value.of_batch for value in operation.tensors.values()):
        return False
    if aten.draws(operation):
        return False  # it draws for each sample by itself
    if aten.is_pointwise(operation):
        return _are_paired(operation)
    return not operation.output.of_batch or order_of_result(operation, frozenset()) is None


def _are_paired(operation: Operation) -> bool:
    """Whether samples of one operand meet those of another, as those of [N, 1] do all of [1, N]."""
    axes = {axis - len(value.shape) for value in operation.tensors.values()
            for axis, length in enumerate(value.shape) if N in getattr(length, "free_symbols", ())}
    return len(axes) > 1
