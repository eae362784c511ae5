"""What is the same in every turn of a loop is computed before it; nothing else is."""

import torch

from hbpcompiler.compiler.optimise.hoist import hoist_from_loops
from hbpcompiler.compiler.program.check import Level, check_program
from tests.compiler.optimise.small import calls, loop, program, run, total_of


def test_what_reads_whole_tensors_alone_is_moved():
    graph = total_of(lambda part, whole: (part * (whole.exp() + 1)).sum(0))
    x, w = torch.randn(5, 3), torch.randn(3)
    hoist_from_loops(graph)
    check_program(graph, Level.DERIVED)
    assert calls(graph) == ["new_zeros", "exp", "add", "loop", "  mul", "  sum", "  add_", "getitem"]
    torch.testing.assert_close(run(graph, x, w), (x * (w.exp() + 1)).sum(0))


def test_draws_buffers_and_what_is_written_to_stay():
    def write(part, whole):
        part_of_total = whole.new_zeros((3,))
        part_of_total.add_(part.sum(0))
        squares = whole.square()
        squares.add_(part.sum(0))  # read as it is then
        return part_of_total + squares + torch.rand_like(whole)

    graph = total_of(write)
    before = calls(graph)
    hoist_from_loops(graph)
    assert calls(graph) == before


def test_it_leaves_loops_inside_loops_by_one_and_then_by_another():
    def write(writer, x, w):
        def outer(part):
            def inner(piece):
                piece.outer(part.totals["t"]).add_((piece["x"] * piece.outer(part.outer(w)).exp()).sum(0))

            part.writer.loop(inner, op=None, sliced={"x": part["x"]}, chunk=1, totals={})

        return writer.loop(outer, op=None, sliced={"x": x}, chunk=2, totals={"t": (3,)})["t"]

    graph = program(write, "x", "w")
    x, w = torch.randn(5, 3), torch.randn(3)
    outer = loop(graph).target.body
    hoist_from_loops(outer)
    assert calls(graph) == ["new_zeros", "loop", "  exp", "  loop", "    mul", "    sum", "    add_", "getitem"]
    hoist_from_loops(graph)
    check_program(graph, Level.DERIVED)
    assert calls(graph) == ["new_zeros", "exp", "loop", "  loop", "    mul", "    sum", "    add_", "getitem"]
    torch.testing.assert_close(run(graph, x, w), (x * w.exp()).sum(0))


def test_views_stay_unless_something_is_made_of_them_outside():
    graph = total_of(lambda part, whole: (part * whole.unsqueeze(1).mT).sum(0))
    before = calls(graph)
    hoist_from_loops(graph)
    assert calls(graph) == before
    graph = total_of(lambda part, whole: (part * whole.unsqueeze(0).exp()).sum(0))
    hoist_from_loops(graph)
    assert calls(graph)[:3] == ["new_zeros", "unsqueeze", "exp"]
    graph = total_of(lambda part, whole: (part * whole.expand(2, 3).t().flatten(0)[:3]).sum(0))
    hoist_from_loops(graph)  # flatten copies what was turned
    assert "flatten" in calls(graph)
