"""A pass: elementwise products, squares, bounds and sums at an index write over a tensor that nobody reads again.

There is no autograd inside a program, so a fresh tensor whose last reader is an elementwise operation may take its
result. What matters is memory: columns are the largest tensors there are, and a new one for each activation is paid
for in page faults.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import by_places
from hbpcompiler.compiler.program.kernels import COLUMNS, PRODUCTS, WRITTEN_OVER
from hbpcompiler.compiler.program.lengths import numbers
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.nodes import MADE_DENSE, facts, shows_its_input
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.limits import DEFAULT_LIMITS

REWRITES = {operator.mul: "mul_", operator.truediv: "div_", operator.sub: "sub_", "square": "square_",
            "clamp": "clamp_", "index_add": "index_add_", "scatter_add": "scatter_add_"}
REUSED = PRODUCTS | {operator.mul, operator.sub, operator.add, operator.truediv, torch.where, torch.cat, torch.stack,
                     torch.softmax, *COLUMNS, *WRITTEN_OVER, by_places} | MADE_DENSE
"""Calls, and methods by name, whose results are written over if they lie in memory of their own; so are those of
torch's kernels that rules call by their own names."""


def write_in_place(graph: fx.Graph, large: int = DEFAULT_LIMITS.large_numbers) -> None:
    """Rewrite `columns * d` and `product.square()` where their input is dead afterwards; shapes must be known.

    `large`: numbers of a weight's closing from which memory counts.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.target == "add_":
            _add_product(graph, node)
        if node.target not in REWRITES.keys() | WRITTEN_OVER or not _is_large(node, large):
            continue
        for arguments in [node.args, node.args[::-1]] if node.target is operator.mul else [node.args]:
            target = arguments[0]
            if isinstance(target, fx.Node) and meta.alike(target, node) and _is_dead_after(target, node, order):
                _write_over(node, arguments)
                break


def _write_over(node: fx.Node, arguments: tuple[Any, ...]) -> None:
    """The call's result takes the memory of the first of these."""
    if node.target in WRITTEN_OVER:
        node.target = WRITTEN_OVER[node.target]
    else:
        node.op, node.target, node.args = "call_method", REWRITES[node.target], arguments
    meta.play(node, Role.OVERWRITES)


def _add_product(graph: fx.Graph, node: fx.Node) -> None:
    """A product that is only added to a total, in the next line, is added as it is made."""
    total, product, *others = node.args
    if (isinstance(product, fx.Node) and product.target is operator.matmul and product.next is node
            and len(product.users) == 1
            and not others and not node.kwargs and len(meta.shape(product) or ()) == 2
            and isinstance(total, fx.Node) and meta.alike(total, product)
            and all(meta.dtype(operand) == meta.dtype(total) for operand in product.all_input_nodes)):
        node.target, node.args = "addmm_", (total, *product.args)
        graph.erase_node(product)


def _is_large(node: fx.Node, large: int) -> bool:
    """Columns, or products of columns: at least [N, K, z]. Or what a large weight's closings are made of."""
    shape = meta.shape(node) or ()
    return len(shape) >= 3 or decided("in place", lambda: numbers(shape) >= large)


def _root(node: fx.Node) -> fx.Node | None:
    """The call whose memory this node shows, or None if it is not certainly of its own and dense."""
    while shows_its_input(node):
        before = node.args[0]
        if facts(node).spreads or not isinstance(before, fx.Node):
            return None
        if isinstance(before.target, Loop):
            return node if sum(user.args[1] == node.args[1] for user in before.users) == 1 else None
        node = before
    is_kernel = isinstance(node.target, torch._ops.OpOverloadPacket) and str(node.target).startswith("aten.")
    return node if (node.target in REUSED or is_kernel) and meta.owns_memory(node) else None


def _family(root: fx.Node) -> list[fx.Node]:
    """The root and all that shares its memory."""
    family = [root]
    for node in family:
        family += [user for user in node.users if shows_its_input(user) and user.args[0] is node and user not in family]
    return family


def _is_dead_after(target: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether nothing that shares the target's memory is read by anyone but `node` from there on."""
    root = _root(target)
    if root is None or len({*node.all_input_nodes} & {*_family(root)}) != 1:
        return False
    return all(user is node or order[user] < order[node] for member in _family(root) for user in member.users)
