"""What is the same in every turn of a chunk loop is computed before it: patches of a sample for all its columns."""

from __future__ import annotations

from torch import fx

from hbpcompiler.compiler.program.nodes import is_pure, writes_in_place
from hbpcompiler.compiler.program.writer import Loop, LoopCall


def hoist_from_loops(graph: fx.Graph) -> None:
    """Move nodes of loop bodies that read only whole tensors in front of their loops."""
    for loop in [node for node in graph.nodes if isinstance(node.target, Loop)]:
        call = LoopCall.of(loop)
        body = call.loop.body
        outside = {passed.inner: passed.outer for passed in call.whole}
        fixed = [node for node in body.nodes if node.op in ("call_function", "call_method")
                 and _take_out(node, graph, loop, outside)]
        for node in fixed:
            if any(user not in outside for user in node.users):
                node.replace_all_uses_with(call.pass_whole(outside[node], f"whole_{node.name}"))
        for node in reversed(fixed):
            body.erase_node(node)


def _take_out(node: fx.Node, graph: fx.Graph, loop: fx.Node, outside: dict[fx.Node, fx.Node]) -> bool:
    """Copy the node before the loop, if all that it reads is there and nothing writes to it; whether that was done."""
    inputs = node.all_input_nodes
    if not inputs or not is_pure(node) or any(read not in outside for read in inputs):
        return False
    if any(_writes(user, node) for user in node.users):
        return False
    with graph.inserting_before(loop):
        outside[node] = graph.node_copy(node, lambda read: outside[read])
    return True


def _writes(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node may be changed by one that reads it: a loop's accumulator, an in-place call's own tensor."""
    if isinstance(user.target, Loop):
        return any(passed.outer is node for passed in LoopCall.of(user).filled)
    return writes_in_place(user) and user.args[:1] == (node,)
