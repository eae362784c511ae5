"""What is the same in every turn of a chunk loop is computed before it: patches of a sample for all its columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from hbpcompiler.compiler.program.writer import Loop


def hoist_invariants(graph: fx.Graph, is_pure: Callable[[fx.Node], bool]) -> None:
    """Move nodes of loop bodies that read only whole tensors in front of their loops."""
    for loop in [node for node in graph.nodes if isinstance(node.target, Loop)]:
        body, (accumulators, sliced, whole) = loop.target.body, loop.args
        holders = [node for node in body.nodes if node.op == "placeholder"]
        first_whole = len(holders) - len(whole)
        outside: dict[fx.Node, Any] = dict(zip(holders[first_whole:], whole, strict=True))
        fixed = [node for node in body.nodes if node.op in ("call_function", "call_method")
                 and _take_out(node, graph, loop, outside, is_pure)]
        added = [node for node in fixed if any(user not in outside for user in node.users)]
        last = holders[-1]
        for node in added:
            with body.inserting_after(last):
                last = body.placeholder(f"whole_{node.name}")
            last.meta = {**outside[node].meta, "cut": False}
            node.replace_all_uses_with(last)
        loop.args = (accumulators, sliced, (*whole, *(outside[node] for node in added)))
        for node in reversed(fixed):
            body.erase_node(node)


def _take_out(node: fx.Node, graph: fx.Graph, loop: fx.Node, outside: dict[fx.Node, Any],
              is_pure: Callable[[fx.Node], bool]) -> bool:
    """Copy the node before the loop, if all that it reads is there and nothing writes to it; whether that was done."""
    inputs = node.all_input_nodes
    if not inputs or not is_pure(node) or isinstance(node.target, Loop) or any(read not in outside for read in inputs):
        return False
    if any(_writes(user, node) for user in node.users):
        return False
    with graph.inserting_before(loop):
        outside[node] = graph.node_copy(node, lambda read: outside[read])
    return True


def _writes(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node may be changed by one that reads it: a loop's accumulator, an in-place method's own tensor."""
    if isinstance(user.target, Loop):
        accumulators: Any = user.args[0]
        return node in accumulators
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__") and user.args[:1] == (node,)
