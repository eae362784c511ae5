"""The last pass: what the formulas above a block call sum S S^T is a call of one name, not X.t() @ X.

Passes before it choose what multiplies two matrices; a file is read by what they are.
"""

from __future__ import annotations

import operator

from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.grams import sum_outer


def call_outer_sums(graph: fx.Graph) -> None:
    """x.t() @ x becomes sum_outer(x)."""
    for node in list(graph.nodes):
        rows = _rows(node)
        if rows is None:
            continue
        turned = node.all_input_nodes[0]
        with graph.inserting_before(node):
            found = graph.call_function(sum_outer, (rows,))
        meta.move(found, node)
        node.replace_all_uses_with(found)
        graph.erase_node(node)
        if not turned.users:
            graph.erase_node(turned)


def _rows(node: fx.Node) -> fx.Node | None:
    """The matrix that the node multiplies with itself, transposed first."""
    if node.target is not operator.matmul:
        return None
    turned, rows = node.args
    if not isinstance(turned, fx.Node) or not isinstance(rows, fx.Node) or turned.op != "call_method":
        return None
    same = turned.target == "t" and turned.args == (rows,)
    return rows if same and len(meta.shape(rows) or ()) == 2 else None
