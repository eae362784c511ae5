"""An optimisation pass: large products go to oneDNN.

For float32 on a CPU it takes half to three quarters of BLAS's time on processors whose widest vectors BLAS does not use
(`hbp tune` measures both).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Machine
from hbpcompiler.compiler.optimise.matrix_products import transposed
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.kernels import OF_ONEDNN
from hbpcompiler.compiler.program.lengths import length_at
from hbpcompiler.compiler.program.nodes import writes_in_place
from hbpcompiler.compiler.program.products import onednn_add_product_, onednn_linear
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

ITEMSIZE = 4


def multiply_by_onednn(graph: fx.Graph, machine: Machine, limits: Limits = DEFAULT_LIMITS,
                       chunk: int = DEFAULT_LIMITS.typical_batch) -> None:
    """Products that are worth it; `chunk` is that of the loop whose body the graph is. After `annotate`."""
    if machine.linear_per_second <= machine.multiply_adds_per_second:
        return
    for node in list(graph.nodes):
        if node.target in OF_ONEDNN:
            _replace_gram(node, limits, chunk)
        elif meta.dtype(node) is torch.float32:
            _replace(graph, node, limits, chunk, machine)


def _replace(graph: fx.Graph, node: fx.Node, limits: Limits, chunk: int, machine: Machine) -> None:
    operands, total = list(node.args), None
    if node.op == "call_method" and node.target == "addmm_" and not node.kwargs:
        total, *operands = operands
    elif node.target not in (operator.matmul, F.linear):
        return
    x, right, *bias = operands
    if not isinstance(x, fx.Node) or not isinstance(right, fx.Node):
        return
    shapes = meta.shape(x) or (), meta.shape(right) or ()
    if len(shapes[0]) < 2 or len(shapes[1]) != 2:
        return
    made = length_at(shapes[1][0 if node.target is F.linear else 1], chunk)
    lengths = [length_at(each, chunk) for each in shapes[0]]
    if decided("not oneDNN", lambda: math.prod(lengths) * made < limits.onednn_multiply_adds
               or min(math.prod(lengths[:-1]), made) < limits.onednn_rows or (
            _is_turned(x) and not _is_worth_a_copy(lengths, made, machine, limits))):
        return
    with graph.inserting_before(node):
        weight = right if node.target is F.linear else transposed(graph, node, right)
        if total is not None:
            product = graph.call_function(onednn_add_product_, (total, x, weight), _few_columns(limits))
        else:
            product = graph.call_function(onednn_linear, (x, weight, *bias), dict(node.kwargs))
    meta.move(product, node)
    node.replace_all_uses_with(product)
    graph.erase_node(node)
    if not right.users:
        graph.erase_node(right)


def _is_turned(x: fx.Node) -> bool:
    """Whether it is a transpose, which BLAS reads as it lies and oneDNN is given a copy of."""
    return x.op == "call_method" and x.target == "t"


def _is_worth_a_copy(lengths: Sequence[int], made: int, machine: Machine, limits: Limits) -> bool:
    """Whether oneDNN gains more on a matrix of these lengths times one with `made` columns than its copy costs."""
    numbers = math.prod(lengths)
    gained = numbers * made * (1 / machine.multiply_adds_per_second - 1 / machine.linear_per_second)
    return gained > limits.turned_slowdown * numbers * ITEMSIZE / machine.bytes_per_second


def _replace_gram(node: fx.Node, limits: Limits, chunk: int) -> None:
    """As for a product of the rows of one chunk: of its own, or of the loop around it."""
    x: Any = node.args[1 if writes_in_place(node) else 0]
    axis, samples = node.kwargs.get("axis", 0), node.kwargs.get("chunk", chunk)
    assert isinstance(axis, int)
    assert isinstance(samples, int)
    lengths = [length_at(each, samples) for each in meta.shape(x) or ()]
    floats = meta.dtype(x) is meta.dtype(node) is torch.float32
    if floats and lengths and decided("oneDNN", lambda: lengths[axis] >= limits.onednn_rows
                                      and math.prod(lengths) * lengths[axis] >= limits.onednn_multiply_adds):
        node.target = OF_ONEDNN[node.target]
        node.kwargs = {**_few_columns(limits), **node.kwargs}


def _few_columns(limits: Limits) -> dict[str, fx.node.Argument]:
    """How a helper is told that limit, whose default is its own."""
    few = limits.half_columns
    return {} if few == DEFAULT_LIMITS.half_columns else {"fewest": few}
