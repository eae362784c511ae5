"""A pass: patches that a block has whole are not made again, some samples at a time, by its loops.

Each closing at a parameter is costed and written alone. So where one needs a convolution's patches whole, and another
made them chunk by chunk to need no more memory than a chunk's, there is nothing left to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import fx

from hbpcompiler.compiler.optimise.simplify import drop_dead
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import gram
from hbpcompiler.compiler.program.kernels import LINEAR
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.nodes import is_pure, writes_in_place
from hbpcompiler.compiler.program.weights import weighted
from hbpcompiler.compiler.program.writer import Loop


def form_operands_once(graph: fx.Graph) -> None:
    """Where the whole is there: loops that add up `gram` of what a chunk is made of become one call, others cut it."""
    for node in list(graph.nodes):
        if isinstance(node.target, Loop):
            _replace(graph, node, node.target)
    for node in graph.nodes:
        if isinstance(node.target, Loop) and node.target.axis == 0:
            _cut_whole(graph, node, node.target)
    drop_dead(graph)


def _cut_whole(graph: fx.Graph, node: fx.Node, loop: Loop) -> None:
    """The body reads a chunk of what is there whole, in the place of making it of a chunk."""
    outside = {passed.inner: passed.outer for passed in LoopCall.of(node).cut}
    for operand in list(loop.body.nodes):
        if operand.target not in LINEAR or meta.block(operand) != meta.block(node):
            continue
        whole = _whole(operand, outside, node)
        if whole is not None:
            _put_before(graph, whole, node)
            operand.replace_all_uses_with(LoopCall.of(node).pass_cut(whole, f"part_{operand.name}"))
            drop_dead(loop.body)


def _put_before(graph: fx.Graph, whole: fx.Node, node: fx.Node) -> None:
    """It is made where the node can read it: what it is made of is read there as well."""
    order = list(graph.nodes)
    if order.index(whole) > order.index(node):
        node.prepend(whole)


def _replace(graph: fx.Graph, node: fx.Node, loop: Loop) -> None:
    product = _only_gram(loop)
    if product is None or len(node.users) != 1:
        return
    outside = {passed.inner: passed.outer for passed in LoopCall.of(node).cut}
    operand = cast("fx.Node", product.args[0])
    weighing = _weighing(operand, outside)
    if weighing is not None:
        outside = {inner: cast("fx.Node", weighing.args[0]) for inner in outside}
    whole = _whole(operand, outside, node)
    if whole is None:
        return
    (result,) = node.users
    _put_before(graph, whole, node)
    with graph.inserting_before(node):
        if weighing is not None:
            whole = graph.call_function(weighted, (whole, *weighing.args[1:]), dict(weighing.kwargs))
            meta.place(whole, node)
        found = graph.call_function(gram, (whole,), {**product.kwargs, "chunk": loop.chunk})
    meta.move(found, result)
    result.replace_all_uses_with(found)
    graph.erase_node(result)
    graph.erase_node(node)


def _only_gram(loop: Loop) -> fx.Node | None:
    """The call of `gram` that a loop adds to its only total, if it writes nothing else."""
    if (loop.totals, loop.rows, loop.axis) != (1, 0, 0):
        return None
    writes = [node for node in loop.body.nodes if writes_in_place(node) or isinstance(node.target, Loop)]
    if len(writes) != 1 or writes[0].target != "add_":
        return None
    added: Any = writes[0].args[1]
    return added if isinstance(added, fx.Node) and added.target is gram else None


def _whole(operand: fx.Node, outside: dict[fx.Node, fx.Node], loop: fx.Node) -> fx.Node | None:
    """The node of the same block that makes of whole tensors what the operand is made of a chunk's."""
    if any(read not in outside for read in operand.all_input_nodes) or not is_pure(operand):
        return None
    args, kwargs = fx.node.map_arg((operand.args, dict(operand.kwargs)), outside.__getitem__)
    for other in _readers(outside[read] for read in operand.all_input_nodes):
        same = other.target == operand.target and other.args == args and other.kwargs == kwargs
        if same and meta.block(other) == meta.block(loop):
            return other
    return None


def _weighing(operand: fx.Node, outside: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The call that gave samples their weights, of the one tensor that the operand is a linear function of."""
    reads = [outside.get(read) for read in operand.all_input_nodes]
    alone = reads[0] if len(reads) == 1 and len(outside) == 1 and operand.target in LINEAR else None
    return alone if alone is not None and alone.target is weighted else None


def _readers(nodes: Iterator[fx.Node]) -> Iterator[fx.Node]:
    for node in nodes:
        yield from node.users
