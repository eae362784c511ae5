"""A pass: two loops that make the same patches of the same samples, turn by turn, become one, which makes them once.

Each closing at a parameter is costed and written alone: per-sample squares and a Kronecker factor A of one convolution
both go over its patches. Of samples with weights A sees each times the root of its weight; patches are a linear
function of their samples, so that the weight may as well come after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import fx

from hbpcompiler.compiler.optimise.simplify import drop_dead
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.kernels import LINEAR
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.nodes import facts, is_pure
from hbpcompiler.compiler.program.weights import weighted
from hbpcompiler.compiler.program.writer import Loop


@dataclass(frozen=True)
class Shared:
    """What two loops' bodies both make of a chunk."""

    one: fx.Node
    """In the first body."""
    other: fx.Node
    """In the second."""
    weights: fx.Node | None
    """What the second's samples were multiplied by."""


def join_loops(graph: fx.Graph) -> None:
    """Where two loops of a block go along samples in the same chunks."""
    left = [node for node in graph.nodes if isinstance(node.target, Loop)]
    while left:
        first, *others = left
        left = [second for second in others if not _joined(graph, first, second)]
    drop_dead(graph)


def _joined(graph: fx.Graph, first: fx.Node, second: fx.Node) -> bool:
    """Whether the second is part of the first now."""
    found = _shared(first, second) if _may_join(first, second) else None
    before = None if found is None else _needed(graph, first, second)
    if found is None or before is None:
        return False
    for node in before:
        first.prepend(node)
    _join(graph, first, second, found)
    return True


def _may_join(first: fx.Node, second: fx.Node) -> bool:
    """Whether their turns are the same ones, as far as the loops tell, and only the second reads what it adds to."""
    one, other = cast("Loop", first.target), cast("Loop", second.target)
    same = (one.chunk, one.axis, one.letter, one.over) == (other.chunk, other.axis, other.letter, other.over)
    fresh = all(facts(total).buffer and len(total.users) == 1 for total, _ in LoopCall.of(second).totals)
    plain = one.axis == 0 and not (one.rows or other.rows or one.begins or other.begins)
    return same and plain and fresh and meta.block(first) == meta.block(second)


def _shared(first: fx.Node, second: fx.Node) -> Shared | None:
    """The first patches that both make; None if there are none."""
    for one, made_of, weights in _patches(first):
        for other, also_of, others in _patches(second):
            if made_of == also_of and weights in (None, others):
                return Shared(one, other, others if weights is None else None)
    return None


def _patches(node: fx.Node) -> Iterator[tuple[fx.Node, object, fx.Node | None]]:
    """A body's patches of what is cut alone, what they are made of outside, and the weights that its samples got."""
    outside = {passed.inner: passed.outer for passed in LoopCall.of(node).cut}
    for made in cast("Loop", node.target).body.nodes:
        if made.target not in LINEAR or made.all_input_nodes != [made.args[0]] or made.args[0] not in outside:
            continue
        source, weights = outside[made.args[0]], None
        if source.target is weighted and all(isinstance(item, fx.Node) for item in source.args):
            source, weights = cast("tuple[fx.Node, fx.Node]", source.args)
        yield made, (made.target, source, made.args[1:], made.kwargs), weights


def _needed(graph: fx.Graph, first: fx.Node, second: fx.Node) -> list[fx.Node] | None:
    """What stands between the two and the second reads, in order; None where that cannot stand before the first."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    found: dict[fx.Node, None] = {}
    waiting = list(second.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if order[node] > order[first] and node not in found:
            found[node] = None
            waiting += node.all_input_nodes
        elif node is first:
            return None
    return sorted(found, key=order.__getitem__) if all(is_pure(node) or facts(node).buffer for node in found) else None


def _begun(total: fx.Node) -> fx.Node:
    """A total, which needs no weighted samples to be like them."""
    like = total.args[0] if facts(total).buffer else None
    if isinstance(like, fx.Node) and like.target is weighted:
        total.replace_input_with(like, cast("fx.Node", like.args[0]))
    return total


def _join(graph: fx.Graph, first: fx.Node, second: fx.Node, shared: Shared) -> None:
    """The second's body behind the first's, in which what they share is there."""
    call, added = LoopCall.of(first), LoopCall.of(second)
    body, count = call.loop.body, call.loop.totals
    name = second.name  # in front of the second's own, which the first's may be called, too
    known = {inner: call.pass_total(_begun(outer), f"{name}_{inner.name}") for outer, inner in added.totals}
    known |= {inner: call.pass_cut(outer, f"{name}_{inner.name}") for outer, inner in added.cut}
    known |= {inner: call.pass_whole(outer, f"{name}_{inner.name}") for outer, inner in added.whole}
    weights = None if shared.weights is None else call.pass_cut(shared.weights, f"{name}_weights")
    end = next(node for node in body.nodes if node.op == "output")
    with body.inserting_before(end):
        for node in added.loop.body.nodes:
            if node is shared.other:
                known[node] = shared.one
                if weights is not None:
                    known[node] = meta.place(body.call_function(weighted, (shared.one, weights)), node)
            elif node.op not in ("placeholder", "output"):
                known[node] = body.node_copy(node, lambda read: known[read])
    call.loop.about = "; ".join(dict.fromkeys(about for about in (call.loop.about, added.loop.about) if about))
    for user in list(second.users):
        user.args = (first, cast("int", user.args[1]) + count)
    graph.erase_node(second)
    drop_dead(body)
    LoopCall.of(first).drop_unread()
