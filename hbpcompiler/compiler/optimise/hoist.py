"""What is the same in every turn of a chunk loop is computed before it: patches of a sample for all its columns.

A view of a tensor from outside costs nothing: it is left where it is read, unless it is of what was moved.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx

from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.nodes import called, facts, is_pure, writes_in_place
from hbpcompiler.compiler.program.writer import Loop


def hoist_from_loops(graph: fx.Graph) -> None:
    """Move nodes of loop bodies that read only whole tensors in front of their loops."""
    for loop in [node for node in graph.nodes if isinstance(node.target, Loop)]:
        call = LoopCall.of(loop)
        body = call.loop.body
        outside = {passed.inner: passed.outer for passed in call.whole}
        fixed = _fixed(body, outside)
        for node in fixed:
            with graph.inserting_before(loop):
                outside[node] = graph.node_copy(node, lambda read: outside[read])
        for node in fixed:
            if any(user not in outside for user in node.users):
                node.replace_all_uses_with(call.pass_whole(outside[node], f"whole_{node.name}"))
        for node in reversed(fixed):
            body.erase_node(node)


def _fixed(body: fx.Graph, outside: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """Nodes that may move: all that they read is outside or moves too, nothing writes to them, and they do some work
    or are read by one that does."""
    movable: dict[fx.Node, bool] = {}
    for node in body.nodes:
        inputs = node.all_input_nodes
        if (node.op in ("call_function", "call_method") and inputs and is_pure(node)
                and all(read in outside or read in movable for read in inputs)
                and not any(_writes(user, node) for user in node.users)):
            movable[node] = not _is_free(node, movable) or any(movable.get(read, False) for read in inputs)
    for node in reversed(movable):
        movable[node] = movable[node] or any(movable.get(user, False) for user in node.users)
    return [node for node, moves in movable.items() if moves]


def _is_free(node: fx.Node, movable: Mapping[fx.Node, bool]) -> bool:
    """Whether it is a view or a shape; what is laid flat after it was turned is copied."""
    if node.target in (getattr, operator.getitem):
        return True
    if called(node) in ("flatten", "reshape"):
        return node.args[0] not in movable
    known = facts(node)
    return known.view and known.moves


def _writes(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node may be changed by one that reads it: a loop's accumulator, an in-place call's own tensor."""
    if isinstance(user.target, Loop):
        return any(passed.outer is node for passed in LoopCall.of(user).filled)
    return writes_in_place(user) and user.args[:1] == (node,)
