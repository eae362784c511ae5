"""Which operations of rule files' own are written out because curvature is asked for (`Decomposition.curved`)."""

from __future__ import annotations

from hbpcompiler.compiler.match.operation.aten import NAMESPACE, is_own
from hbpcompiler.compiler.trace.graph import Graph


def notes(graph: Graph) -> list[str]:
    """For `explain` and the head of a file: where they stand."""
    kept = {operation.source.module for operation in graph.operations if is_own(operation)}
    found = [_place(operation.source.module) for operation in graph.operations
             if operation.source.whole.startswith(f"{NAMESPACE}.") and operation.source.module not in kept]
    if not found:
        return []
    return ["Written out step by step, as there is curvature inside: " + ", ".join(dict.fromkeys(found)) + "."]


def _place(module: str) -> str:
    return f"module {module!r}" if module else "the model's forward"
