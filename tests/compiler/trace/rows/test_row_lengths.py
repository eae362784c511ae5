"""Numbers of rows by torch's symbols of them."""

import operator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from hbpcompiler.compiler.trace.rows.places import Count
from hbpcompiler.compiler.trace.rows.row_lengths import Lengths
from hbpcompiler.compiler.trace.rows.rows import Rows, Writer

aten = torch.ops.aten


def test_a_number_that_is_that_of_the_rows_counts_them():
    before, writer, values = Graph(), Writer(Graph()), {}
    lengths = Lengths(writer, values)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        mask = mode.from_tensor(torch.ones(5, dtype=torch.bool))
        picked = mode.from_tensor(torch.ones(5, 4))[mask]
    length = picked.shape[0]
    rows, size, part = (before.placeholder(name) for name in ("rows", "size", "part"))
    rows.meta["val"], size.meta["val"], part.meta["val"] = picked, length, (4 * length) // 4
    there = writer.alike.enter(writer.graph.placeholder("mask"))
    there.meta["val"] = mask
    values[rows] = Rows(there, there, there)
    read = before.call_function(aten.sym_size.int, (rows, 0))
    read.meta["val"] = length
    count = lengths.number_of(read, [values[rows]])
    assert count.picked_by is there
    assert lengths.is_of(count, values[rows])
    assert lengths.mask_of(length) is there
    assert lengths.mask_of(7) is None
    values[read] = count
    again = before.call_function(operator.floordiv, (read, 1))
    again.meta["val"] = part.meta["val"]
    assert lengths.number_of(again, [count]) is count
    double = before.call_function(operator.mul, (2, read))
    double.meta["val"] = 2 * length
    made = lengths.number_of(double, [count])
    assert isinstance(made, Count)
    assert made.picked_by is None
    assert not lengths.is_of(made, values[rows])
