"""What a graph promises: every name once, and made before it is read."""

from __future__ import annotations

from collections.abc import Iterator

from hbpcompiler.compiler.trace.graph import Graph


def check_graph(graph: Graph) -> Iterator[str]:
    """What is wrong with a graph, if anything."""
    known: set[str] = set()
    for value in (*graph.batch, *graph.state):
        if value.name in known:
            yield f"two values are called {value.name}"
        known.add(value.name)
    for operation in graph.operations:
        for slot, value in operation.tensors.items():
            if value.name not in known:
                yield f"{operation.name} ({operation.target}) reads {value.name} as {slot} before it is made"
        if operation.name in known:
            yield f"two values are called {operation.name}"
        known.add(operation.name)
    for value in (graph.loss, *graph.outputs):
        if value.name not in known:
            yield f"{value.name} is returned, and nothing makes it"
