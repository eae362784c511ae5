"""The last pass: elementwise products and squares write over a tensor that nobody reads again.

There is no autograd inside a program, so a fresh tensor whose last reader is an elementwise operation may take its
result. What matters is memory: columns are the largest tensors there are, and a new one for each activation is paid
for in page faults.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.program.kernels import onednn_linear
from hbpcompiler.compiler.program.nodes import called, writes_in_place
from hbpcompiler.compiler.program.writer import Loop

VIEWS = {"unflatten", "flatten", "reshape", "view", "unsqueeze", "squeeze", "permute", "transpose", "t", "detach",
         "type_as", "to", "contiguous", "select", "narrow", "unfold", "expand", "expand_as", "movedim", "diagonal"}
"""Methods whose result may share memory with their input."""
SPREAD = {"expand", "expand_as", "unfold", "diagonal"}
"""Views in which one number may stand for several: never written to."""
REWRITES = {operator.mul: "mul_", operator.truediv: "div_", operator.sub: "sub_", "square": "square_"}
LARGE = 2**16
"""Numbers of a weight's closing from which memory counts."""
FRESH = {operator.matmul, operator.mul, operator.sub, operator.add, operator.truediv, torch.einsum, torch.where,
         torch.cat, torch.stack, torch.nn.functional.conv_transpose1d, torch.nn.functional.conv_transpose2d,
         torch.nn.functional.conv_transpose3d, torch.nn.functional.conv1d, torch.nn.functional.conv2d,
         torch.nn.functional.conv3d, onednn_linear, "scatter_add", "square", "clamp",
         torch.ops.aten.convolution_backward}
"""Calls that return memory of their own."""


def write_in_place(graph: fx.Graph) -> None:
    """Rewrite `columns * d` and `product.square()` where their input is dead afterwards; shapes must be known."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if isinstance(node.target, Loop):
            write_in_place(node.target.body)
        if node.target == "add_":
            _add_product(graph, node)
        if node.target not in REWRITES or not isinstance(node.args[0], fx.Node):
            continue
        target = node.args[0]
        if _is_large(node) and _same_kind(target, node) and _is_dead_after(target, node, order):
            others = node.args[1:]
            node.op, node.target = "call_method", REWRITES[node.target]
            node.args = (target, *others)
    graph.lint()


def _add_product(graph: fx.Graph, node: fx.Node) -> None:
    """A product that is only added to a total, in the next line, is added as it is made."""
    total, product, *others = node.args
    if (isinstance(product, fx.Node) and product.target is operator.matmul and product.next is node
            and len(product.users) == 1
            and not others and not node.kwargs and len(product.meta.get("shape", ())) == 2
            and isinstance(total, fx.Node) and _same_kind(total, product)
            and all(operand.meta.get("dtype") == total.meta.get("dtype") for operand in product.all_input_nodes)):
        node.target, node.args = "addmm_", (total, *product.args)
        graph.erase_node(product)


def _is_large(node: fx.Node) -> bool:
    """Columns, or products of columns: at least [N, K, z]. Or what a large weight's closings are made of."""
    shape = node.meta.get("shape") or ()
    return len(shape) >= 3 or math.prod(int(length) for length in shape if length.isdigit()) >= LARGE


def _same_kind(target: fx.Node, node: fx.Node) -> bool:
    return target.meta.get("shape") == node.meta.get("shape") and target.meta.get("dtype") == node.meta.get("dtype")


def _key(node: fx.Node) -> Any:
    return node.target if node.op == "call_function" else called(node)


def _is_view(node: fx.Node) -> bool:
    return ((node.op == "call_method" and (called(node) in VIEWS or writes_in_place(node)))
            or node.target is operator.getitem or (node.target is getattr and node.args[1] == "mT"))


def _root(node: fx.Node) -> fx.Node | None:
    """The call whose memory this node shows, or None if it is not certainly fresh and dense."""
    while _is_view(node):
        before = node.args[0]
        if called(node) in SPREAD or not isinstance(before, fx.Node):
            return None
        if isinstance(before.target, Loop):
            return node if sum(user.args[1] == node.args[1] for user in before.users) == 1 else None
        node = before
    if _key(node) not in FRESH or (node.target is torch.einsum and len(node.args) < 3):
        return None
    return node


def _family(root: fx.Node) -> list[fx.Node]:
    """The root and all that shares its memory."""
    family = [root]
    for node in family:
        family += [user for user in node.users if _is_view(user) and user.args[0] is node and user not in family]
    return family


def _is_dead_after(target: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether nothing that shares the target's memory is read by anyone but `node` from there on."""
    root = _root(target)
    if root is None or len({*node.all_input_nodes} & {*_family(root)}) != 1:
        return False
    return all(user is node or order[user] < order[node] for member in _family(root) for user in member.users)
