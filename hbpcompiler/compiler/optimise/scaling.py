"""Division by the batch size moved from a product to its smaller operand: per-sample gradients are written once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import numbers
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.nodes import RESHAPES
from hbpcompiler.compiler.program.writer import Loop

VIEWS = RESHAPES | {"squeeze"}
"""Of a product, divided like the product itself."""


def divide_before_products(graph: fx.Graph) -> None:
    """einsum(a, b) / N becomes einsum(a / N, b) where a is smaller than what the product makes. After `annotate`."""
    for node in list(graph.nodes):
        if node.target is not operator.truediv or not _is_batch_size(node.args[1]):
            continue
        if _divide_in_loop(node) or _divide_operand(graph, node):
            quotient: Any = node.args[0]
            meta.rename(quotient, meta.hint(node))
            node.replace_all_uses_with(quotient)
            graph.erase_node(node)


def _divide_operand(graph: fx.Graph, node: fx.Node) -> bool:
    """The smaller operand of the product that is divided is divided instead; whether that was done."""
    product = _product_below(node.args[0])
    if product is None:
        return False
    operands = _operands(product)
    smallest = operands[decided("smallest", lambda: min(range(len(operands)), key=lambda each: _size(operands[each])))]
    if decided("not divided before", lambda: 2 * _size(smallest) > _size(product)):
        return False
    with graph.inserting_before(product):
        scaled = graph.call_function(operator.truediv, (smallest, node.args[1]))
    meta.place(scaled, product)
    meta.set_tensor(scaled, meta.shape(smallest) or (), meta.dtype(smallest))
    replaced = tuple(scaled if operand is smallest else operand for operand in operands)
    product.args = (product.args[0], *replaced) if product.args[1] in operands else (product.args[0], replaced)
    return True


def _divide_in_loop(node: fx.Node) -> bool:
    """Rows that a chunk loop fills are divided as they are filled, in cache; whether that was done."""
    item: Any = node.args[0]
    while isinstance(item, fx.Node) and len(item.users) == 1 and item.op == "call_method" and item.target in VIEWS:
        item = item.args[0]
    loop = item.args[0] if isinstance(item, fx.Node) and item.target is operator.getitem else None
    if not isinstance(loop, fx.Node) or len(item.users) != 1 or not isinstance(loop.target, Loop):
        return False
    call = LoopCall.of(loop)
    filled = call.filled[item.args[1]]
    (fill, *others) = filled.inner.users
    if filled not in call.rows or others or fill.target != "copy_":
        return False
    divisor: Any = node.args[1]
    count = call.pass_whole(divisor, "batch_size")
    rows, made = fill.args[0], fill.args[1]
    assert isinstance(made, fx.Node)
    with call.loop.body.inserting_before(fill):
        scaled = call.loop.body.call_function(operator.truediv, (made, count))
    meta.copy(scaled, made)
    fill.args = (rows, scaled)
    return True


def _is_batch_size(item: Any) -> bool:
    return isinstance(item, fx.Node) and meta.role(item) is Role.BATCH_SIZE


def _product_below(item: Any) -> fx.Node | None:
    """The einsum of two operands, sample by sample, that a value is a view of, if nobody else reads any of them."""
    while isinstance(item, fx.Node) and len(item.users) == 1:
        if item.target is torch.einsum:
            operands, each = _operands(item), str(item.args[0]).partition("->")[2].startswith("n")
            two = len(operands) == 2 and operands[0] is not operands[1]
            return item if two and each and all(meta.shape(operand) is not None for operand in operands) else None
        if item.op != "call_method" or item.target not in VIEWS:
            return None
        item = item.args[0]
    return None


def _operands(product: fx.Node) -> list[fx.Node]:
    """einsum takes its operands one by one or as a list."""
    given: Any = product.args[1:] if isinstance(product.args[1], fx.Node) else product.args[1]
    return list(given)


def _size(node: fx.Node) -> int:
    """Numbers in one sample's part."""
    return numbers(meta.shape(node) or ())
