"""Rows at an index are added to the sum that they belong to, not to zeros."""

import torch

from hbpcompiler.compiler.optimise.index_sums import add_at_index
from tests.compiler.optimise.small import calls, program, run, shaped


def summed(write):
    """Calls after the pass, which leaves the numbers as they are."""
    graph = shaped(program(write, "x", "y", "z"), (4, 3), (5, 3), (5,))
    given = [torch.randn(4, 3), torch.randn(5, 3), torch.randn(5)]
    before = run(graph, *given)
    add_at_index(graph)
    torch.testing.assert_close(run(graph, *given), before)
    return calls(graph)


def at_index(x, y, z):
    return x.new_zeros(4, 3).index_add(0, (z > 0).long(), y)


def test_rows_are_added_to_what_they_are_added_to():
    assert summed(lambda writer, x, y, z: x * x + at_index(x, y, z))[-2:] == ["long", "index_add"]
    assert summed(lambda writer, x, y, z: at_index(x, y, z) + x * x)[-1] == "index_add"
    assert summed(lambda writer, x, y, z: at_index(x, y, z) + at_index(x, y, -z) + x).count("new_zeros") == 1


def test_what_is_read_again_or_spread_stays():
    def twice(writer, x, y, z):
        rows = at_index(x, y, z)
        return x + rows, rows

    assert "add" in summed(twice)
    assert "add" in summed(lambda writer, x, y, z: x[:1] + at_index(x, y, z))
    assert "add" in summed(lambda writer, x, y, z: x + x.index_add(0, (z > 0).long(), y))
