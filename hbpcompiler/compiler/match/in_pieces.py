"""What no rule covers is taken apart, by rule files or torch's own table, until rules cover the pieces."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from hbpcompiler.compiler.match.losses.negative_weights import with_negative_weights
from hbpcompiler.compiler.match.operation.aten import (
    DECOMPOSITION_ROUNDS,
    decompositions,
    is_differentiable,
    is_own,
    overload_of,
)
from hbpcompiler.compiler.match.reach import with_stops
from hbpcompiler.compiler.trace.graph import Graph, Operation
from hbpcompiler.compiler.trace.trace import Traced
from hbpcompiler.errors import ModelError
from hbpcompiler.rule import LossRule, Pieces
from hbpcompiler.rule.faults import is_noted
from hbpcompiler.rule.registry import Registry


def taken_apart(traced: Traced, registry: Registry) -> Traced:
    """The same with every operation that no rule covers in pieces, as far as torch's table and rule files know them.

    What would end in pieces that torch cannot differentiate, or that are refused, stays whole: it can get a derived
    rule.
    """
    whole: set[str] = set()
    while True:
        found, failed = _in_pieces(traced, registry, whole)
        dead_ends = {operation.source.whole for operation in found.graph.operations
                     if operation.name in found.graph.active and _needs_pieces(operation, registry, found.graph.active)
                     and not (is_differentiable(operation) and _is_allowed(operation, registry))}
        more = (failed | dead_ends) - whole - {""}
        if not more:
            return found
        whole |= more


def _is_allowed(operation: Operation, registry: Registry) -> bool:
    """Whether no rule file refuses it; what the user's own code calls is refused in words."""
    is_piece = operation.source.whole not in ("", operation.target)
    return not is_piece or registry.refusal(operation.target, operation.overload) is None


def _in_pieces(traced: Traced, registry: Registry, whole: AbstractSet[str]) -> tuple[Traced, set[str]]:
    """All but the operations named `whole`; and those with which torch's own way of doing it fails."""
    for _ in range(DECOMPOSITION_ROUNDS):
        graph = with_stops(traced.graph, registry)
        curved, negative = traced.ends.inside or _is_own_in_loss(graph), with_negative_weights(traced, registry)
        pieces = [operation for operation in graph.operations
                  if (operation.name in graph.active or is_own(operation))
                  and (operation.name in negative or _needs_pieces(operation, registry, graph.active, curved))
                  and (operation.source.whole or operation.target) not in whole]
        # What has no rule goes first: until then what a loss is told of its target may look trained and not be
        # (mse_loss broadcasts both by one operation).
        unknown = [operation for operation in pieces if registry.find(operation.target, operation.overload) is None]
        table = decompositions(unknown, registry, curved) or decompositions(pieces, registry, curved)
        if not table:
            break
        further = _decomposed(traced, table)
        if further is None:
            bad = [overload for overload in table if _decomposed(traced, {overload: table[overload]}) is None]
            return traced, {operation.source.whole or operation.target for operation in pieces
                            if overload_of(operation) in (bad or table)}
        traced = further
    return traced, set()


def _decomposed(traced: Traced, table: Mapping[Any, Any]) -> Traced | None:
    """None where torch cannot, or where what it makes is no graph of functions."""
    try:
        found = traced.decomposed(table)
        _ = found.graph
    except (ModelError, RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError, IndexError) as error:
        if is_noted(error):
            raise
        return None
    return found


def _is_own_in_loss(graph: Graph) -> bool:
    """Whether the loss has an operation of rule files' own: what makes a loss curved has to be known in pieces."""
    return any(operation.source.in_loss and is_own(operation) for operation in graph.operations)


def _needs_pieces(operation: Operation, registry: Registry, active: AbstractSet[str], curved: bool = False) -> bool:
    """No rule, or one of first derivatives alone where others count; or a loss function that is an operation like any
    other, inside a loss (reduction="none") or of two trained values, of which its rule knows one."""
    if is_complex(operation):
        return False  # rules are about real numbers, and so are their pieces
    rule = registry.find(operation.target, operation.overload)
    if not isinstance(rule, LossRule):
        return rule is None or (curved and isinstance(rule.residual, Pieces))
    others = [value for slot, value in operation.tensors.items() if slot != rule.input]
    return bool(operation.output.shape) or any(value.name in active for value in others)


def is_complex(operation: Operation) -> bool:
    return any(value.dtype.is_complex for value in (*operation.tensors.values(), operation.output))
