"""A graph in which part of a tensor is written to, by hand."""

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.fx_graph.written_views import Anew, NotAPartError, memory_of
from hbpcompiler.errors import ModelError

aten = torch.ops.aten


def test_a_write_through_two_views_reaches_the_whole_and_views_of_it():
    graph = Graph()
    x = graph.placeholder("x")
    h = graph.call_function(aten.mul.Tensor, (x, 1))
    rows = graph.call_function(aten.slice.Tensor, (h, 0, 1, 3))
    row = graph.call_function(aten.select.int, (rows, 0, 0))
    other = graph.call_function(aten.diagonal.default, (h,))
    for node in (h, rows, row, other):
        node.meta["val"] = None
    assert [memory_of(node) for node in (h, rows, row, other)] == [[], [h], [rows], [h]]
    doubled = graph.call_function(aten.mul.Tensor, (row, 2))
    anew = Anew(graph, row, doubled)
    graph.output((anew[h], anew[rows], anew[row], anew[other], row))
    assert anew[row] is anew[row]
    x = torch.arange(9.0).reshape(3, 3)
    expected = x.clone()
    expected[1] *= 2
    found = GraphModule({}, graph)(x)
    for value, right in zip(found, (expected, expected[1:], expected[1], expected.diagonal(), x[1]), strict=True):
        assert torch.equal(value, right)


def test_a_view_in_another_order_is_no_part():
    graph = Graph()
    turned = graph.call_function(aten.t.default, (graph.placeholder("x"),))
    with pytest.raises(NotAPartError):
        Anew(graph, turned, graph.call_function(aten.relu.default, (turned,)))


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 6), nn.Parameter(torch.ones(3))

    def forward(self, x):
        h = self.layer(x).sin()
        h.unfold(1, 2, 2)[:, :, 0].mul_(self.scale)
        return h


def test_a_write_that_torch_puts_back_for_one_size_alone_is_named():
    X, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 5])
    with pytest.raises(ModelError, match=r"(?s)in place to a view.*make a new tensor.*unfold\(1, 2, 2\)"):
        hbp.compile(Windows(), quantities=["grad"])(X, y)
