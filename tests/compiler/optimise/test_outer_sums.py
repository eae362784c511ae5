"""A matrix times itself, transposed first, is a sum of outer products; other products stay."""

import torch

from hbpcompiler.compiler.optimise.outer_sums import call_outer_sums
from tests.compiler.optimise.small import calls, program, run, shaped


def test_rows_meet_themselves():
    graph, x = shaped(program(lambda writer, x: x.t() @ x, "x"), (-1, 3)), torch.randn(5, 3)
    call_outer_sums(graph)
    assert calls(graph) == ["sum_outer"]
    assert torch.equal(run(graph, x), x.t() @ x)


def test_products_with_others_and_of_columns_stay():
    for write in (lambda writer, x, y: x.t() @ y, lambda writer, x, y: x @ x.t() + y.sum()):
        graph = shaped(program(write, "x", "y"), (-1, 3), (-1, 3))
        before = calls(graph)
        call_outer_sums(graph)
        assert calls(graph) == before
