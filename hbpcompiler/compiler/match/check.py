"""What match promises to the planner: samples in front, and a rule wherever derivatives go."""

from __future__ import annotations

from collections.abc import Iterator

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.trace.check import check_graph
from hbpcompiler.compiler.trace.graph import N


def check_matched(matched: Matched) -> Iterator[str]:
    """What is wrong with a matched graph, if anything."""
    yield from check_graph(matched.graph)
    ending = {operation.name for operation in (*matched.ending.reductions, *matched.ending.tail)}
    for operation in matched.graph.operations:
        if operation.name not in matched.active:
            continue
        if operation.name not in matched.rules:
            yield f"derivatives reach {operation.name} ({operation.target}), which has no rule"
        lengths = operation.output.shape[1:] if operation.output.batched else operation.output.shape
        if operation.name not in ending and any(N in getattr(length, "free_symbols", ()) for length in lengths):
            yield f"{operation.name} of shape {list(operation.output.shape)} has its samples elsewhere than in front"
    made = set(matched.graph.makers)
    for name in sorted(set(matched.rules) - made):
        yield f"there is a rule for {name}, which no operation makes"
    for name in sorted({operation.name for operation in matched.ending.reductions} - set(matched.ending.multiples)):
        yield f"nothing says what {name} is multiplied by in the loss"
    missing = {value.name for value in matched.graph.values()} - set(matched.names)
    for name in sorted(missing):
        yield f"{name} has no name in generated code"
