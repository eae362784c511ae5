"""A pass that finishes results as soon as what they are made of is there: it may still be in cache, and is freed.

A variance is made of two totals, each as large as the parameters. Finished at the end of the program, both are there
for all parameters at once, and are read from memory again.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.adding import is_of_results
from hbpcompiler.compiler.program.lengths import numbers
from hbpcompiler.limits import DEFAULT_LIMITS


def finish_early(graph: fx.Graph, large: int = DEFAULT_LIMITS.large_numbers) -> None:
    """Large results that are made of several values stand behind the last of these. After `annotate`."""
    order = {node: (position, 0) for position, node in enumerate(graph.nodes)}
    output = next(node for node in graph.nodes if node.op == "output")
    for number, result in enumerate(output.all_input_nodes, start=1):
        own = sorted({*_steps(result)}, key=lambda node: order[node])
        sources = {read for node in own for read in node.all_input_nodes if not is_of_results(read)}
        if sum(_is_large(source, large) for source in sources) < 2:
            continue
        for node in own:
            last = max(node.all_input_nodes, key=lambda read: order[read])
            last.append(node)
            order[node] = (order[last][0], order[last][1] + number)
            meta.place(node, last)


def _steps(node: fx.Node) -> Iterator[fx.Node]:
    """What is computed for a result alone, from values of the backward pass."""
    if is_of_results(node):
        yield node
        for read in node.all_input_nodes:
            yield from _steps(read)


def _is_large(node: fx.Node, large: int) -> bool:
    return decided("finish early", lambda: numbers(meta.shape(node) or ()) >= large)
