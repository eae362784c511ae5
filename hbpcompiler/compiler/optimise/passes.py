"""Stage 5, optimise: named passes over the fx graph, each checked after it has run."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from hbpcompiler.compiler.optimise.hoist import hoist_invariants
from hbpcompiler.compiler.optimise.simplify import (
    cancel_inverses,
    drop_dead,
    drop_neutral,
    read_shapes_at_the_source,
    share_common_subexpressions,
)
from hbpcompiler.compiler.program.nodes import is_pure
from hbpcompiler.compiler.program.writer import Loop


def hoist_from_loops(graph: fx.Graph) -> None:
    """What a loop's body computes in every turn alike is computed before the loop."""
    hoist_invariants(graph, is_pure)


PASSES: tuple[Callable[[fx.Graph], None], ...] = (
    drop_neutral,
    share_common_subexpressions,
    cancel_inverses,
    share_common_subexpressions,
    read_shapes_at_the_source,
    drop_dead,
    hoist_from_loops,
    share_common_subexpressions,
    drop_dead,
)


def optimise(graph: fx.Graph) -> fx.Graph:
    """Run all passes, in loops' bodies first, and check the graph after each."""
    for node in graph.nodes:
        if isinstance(node.target, Loop):
            optimise(node.target.body)
    for step in PASSES:
        step(graph)
        graph.lint()
    return graph
