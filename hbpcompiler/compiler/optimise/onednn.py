"""A pass: large float32 products go to oneDNN."""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler.compiler.cost.figures import TYPICAL_BATCH, Machine
from hbpcompiler.compiler.optimise.matrix_products import LARGE, LENGTH, _transposed
from hbpcompiler.compiler.program.kernels import onednn_linear
from hbpcompiler.compiler.program.writer import Loop


def multiply_by_onednn(graph: fx.Graph, machine: Machine, chunk: int = TYPICAL_BATCH) -> None:
    """Products that are worth it; `chunk` is that of the loop whose body the graph is. After `annotate`."""
    if machine.linear_per_second <= machine.multiply_adds_per_second:
        return
    for node in list(graph.nodes):
        if isinstance(node.target, Loop):
            multiply_by_onednn(node.target.body, machine, node.target.chunk)
        elif node.meta.get("dtype") is torch.float32:
            _replace(graph, node, chunk)
    graph.lint()


def _replace(graph: fx.Graph, node: fx.Node, chunk: int) -> None:
    operands, total = list(node.args), None
    if node.op == "call_method" and node.target == "addmm_" and not node.kwargs:
        total, *operands = operands
    elif node.target not in (operator.matmul, F.linear):
        return
    x, right, *bias = operands
    if not isinstance(x, fx.Node) or not isinstance(right, fx.Node):
        return
    shapes = x.meta.get("shape", ()), right.meta.get("shape", ())
    if len(shapes[0]) < 2 or len(shapes[1]) != 2:
        return
    made = shapes[1][0 if node.target is F.linear else 1]
    if math.prod(_length(each, chunk) for each in (*shapes[0], made)) < LARGE:
        return
    with graph.inserting_before(node):
        weight = right if node.target is F.linear else _transposed(graph, node, right)
        product = graph.call_function(onednn_linear, (x, weight, *bias), dict(node.kwargs))
    product.meta = {key: item for key, item in node.meta.items() if key != "hint" or total is None}
    if total is not None:
        node.target, node.args = "add_", (total, product)
    else:
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    if not right.users:
        graph.erase_node(right)


def _length(text: str, chunk: int) -> int:
    """An axis's length in a typical batch, or in a chunk."""
    match = LENGTH.fullmatch(text)
    return int(match[1] or 1) * chunk + int(match[2] or 0) if match is not None else int(text)
