"""What works on each of the rows that a mask picks, and what stands outside the mask meanwhile."""

import pytest
import torch
from torch.fx import Graph

from hbpcompiler.compiler.trace.rows.outside import outside
from hbpcompiler.compiler.trace.rows.row_by_row import RowByRow
from hbpcompiler.compiler.trace.rows.row_lengths import Lengths
from hbpcompiler.compiler.trace.rows.rows import NotWholeError, Rows, Writer

aten = torch.ops.aten


def picked():
    """Rows of [4, 3] that a mask picks, and what writes operations on them."""
    graph = Graph()
    values, mask = graph.placeholder("x"), graph.placeholder("mask")
    values.meta["val"], mask.meta["val"] = torch.randn(4, 3), torch.tensor([True, False, True, False])
    writer = Writer(graph)
    for node in (values, mask):
        writer.alike.enter(node)
    return graph, values, writer, writer.picked(values, mask, (0,))


def test_an_operation_of_rows_is_one_of_all():
    graph, values, writer, rows = picked()
    node = graph.call_function(aten.exp.default, (values,))
    node.meta["val"] = values.meta["val"][:2].exp()
    known = {values: rows}
    (found,) = RowByRow(writer, known, Lengths(writer, known)).results(node, aten.exp.default, {"self": values})
    assert found.whole.target is aten.exp.default
    assert tuple(found.whole.meta["val"].shape) == (4, 3)
    with pytest.raises(NotWholeError):
        RowByRow(writer, known, Lengths(writer, known)).results(node, aten.cumsum.default, {"self": values, "dim": 0})


def test_what_stands_outside():
    _, values, _, rows = picked()
    weight = object()
    assert isinstance(rows, Rows)
    assert outside(aten.linear.default, "input", rows, {}, {values: rows, weight: weight}) == 0
    assert outside(aten.exp.default, "self", rows, {}, {values: rows}) is None
    assert outside(aten.log.default, "self", rows, {}, {values: rows}) > 0
    assert outside(aten.div.Tensor, "other", rows, {}, {values: rows}) != 0
