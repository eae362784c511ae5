"""Division by the batch size moved from a product to its smaller operand: per-sample gradients are written once."""

from __future__ import annotations

import math
import operator
from typing import Any, cast

import torch
from torch import fx

from hbpcompiler.compiler.program.writer import Loop

VIEWS = {"squeeze", "reshape", "flatten", "unflatten"}


def divide_before_products(graph: fx.Graph) -> None:
    """einsum(a, b) / N becomes einsum(a / N, b) where a is smaller than what the product makes. After `annotate`."""
    for node in list(graph.nodes):
        if node.target is not operator.truediv or not _is_batch_size(node.args[1]):
            continue
        if _divide_in_loop(node):
            continue
        product = _product_below(node.args[0])
        if product is None:
            continue
        operands = _operands(product)
        smallest = min(operands, key=_size)
        if 2 * _size(smallest) > _size(product):
            continue
        with graph.inserting_before(product):
            scaled = graph.call_function(operator.truediv, (smallest, node.args[1]))
        scaled.meta = {name: smallest.meta[name] for name in ("shape",)} | {"block": product.meta.get("block")}
        replaced = tuple(scaled if operand is smallest else operand for operand in operands)
        product.args = (product.args[0], *replaced) if product.args[1] in operands else (product.args[0], replaced)
        result: Any = node.args[0]
        result.meta["hint"] = node.meta.get("hint")
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _divide_in_loop(node: fx.Node) -> bool:
    """Rows that a chunk loop fills are divided as they are filled, in cache; whether that was done."""
    item: Any = node.args[0]
    while len(item.users) == 1 and item.op == "call_method" and item.target in VIEWS:
        item = item.args[0]
    loop = item.args[0] if item.target is operator.getitem else None
    if len(item.users) != 1 or not isinstance(loop, fx.Node) or not isinstance(loop.target, Loop):
        return False
    body, arguments = loop.target.body, loop.args
    accumulators, sliced, whole = cast("tuple[tuple[fx.Node, ...], ...]", arguments)  # as Writer.loop wrote them
    holders = [holder for holder in body.nodes if holder.op == "placeholder"]
    (fill, *others) = holders[item.args[1]].users
    if item.args[1] < loop.target.totals or others or fill.target != "copy_":
        return False
    with body.inserting_after(holders[-1]):
        count = body.placeholder("batch_size")
    count.meta = {"cut": False, "hint": "N"}
    with body.inserting_before(fill):
        scaled = body.call_function(operator.truediv, (fill.args[1], count))
    scaled.meta = {key: value for key, value in fill.args[1].meta.items() if key != "hint"}
    fill.args = (fill.args[0], scaled)
    loop.args = (accumulators, sliced, (*whole, node.args[1]))
    result: Any = node.args[0]
    result.meta["hint"] = node.meta.get("hint")
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
    return True


def _is_batch_size(item: Any) -> bool:
    return isinstance(item, fx.Node) and item.meta.get("hint") == "N"


def _product_below(item: Any) -> fx.Node | None:
    """The einsum of two operands, sample by sample, that a value is a view of, if nobody else reads any of them."""
    while isinstance(item, fx.Node) and len(item.users) == 1:
        if item.target is torch.einsum:
            operands, each = _operands(item), str(item.args[0]).partition("->")[2].startswith("n")
            two = len(operands) == 2 and operands[0] is not operands[1]
            return item if two and each and all("shape" in operand.meta for operand in operands) else None
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
    return math.prod(int(length) if length.isdigit() else 1 for length in node.meta["shape"])
