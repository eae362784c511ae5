"""An optimisation pass: a matrix that meets few columns of each sample meets those of all in one product.

torch multiplies a stack of matrices one by one, and reads the matrix anew for each: a convolution of single pixels on
images of 2 x 2 spends nearly all of its time on that.
"""

from __future__ import annotations

import math
import operator

from torch import fx

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import length_at
from hbpcompiler.compiler.program.products import product_for_all
from hbpcompiler.limits import DEFAULT_LIMITS, Limits


def join_products(graph: fx.Graph, limits: Limits = DEFAULT_LIMITS, chunk: int = DEFAULT_LIMITS.typical_batch) -> None:
    """Where it is worth it; `chunk` is that of the loop whose body the graph is. After `annotate`."""
    for node in list(graph.nodes):
        if node.target is operator.matmul and _is_worth_it(node, limits, chunk):
            node.target = product_for_all


def _is_worth_it(node: fx.Node, limits: Limits, chunk: int) -> bool:
    """Whether a matrix, large enough, is multiplied by several samples' columns, few enough."""
    matrix, columns = node.args
    if not isinstance(matrix, fx.Node) or not isinstance(columns, fx.Node):
        return False
    lengths, stack = meta.shape(matrix) or (), meta.shape(columns) or ()
    if len(lengths) != 2 or len(stack) < 3:
        return False
    numbers = math.prod(length_at(each, chunk) for each in lengths)
    *samples, _, each = (length_at(axis, chunk) for axis in stack)
    return decided("one product", lambda: numbers >= limits.joined_numbers and math.prod(samples) > 1
                   and each <= limits.joined_columns)
