"""Ones and other numbers throughout: they go as factors, and stay where something needs the whole tensor."""

import pytest
import torch

from hbpcompiler.compiler.optimise.constants import drop_constant_factors, drop_ones
from hbpcompiler.compiler.optimise.simplify import drop_dead
from tests.compiler.optimise.small import calls, program, run, shaped


def without_ones(write, *shapes):
    """What is called once ones are dropped; the results are the same as before."""
    torch.manual_seed(0)
    graph = shaped(program(write, *"cxyz"[:len(shapes)]), *shapes)
    given = [torch.rand(shape) + 1 for shape in shapes]
    before = run(graph, *given)
    drop_constant_factors(graph)
    drop_ones(graph)
    drop_dead(graph)
    assert torch.equal(run(graph, *given), before)
    return calls(graph)


def ones(writer, x):
    return writer.call(torch.ones_like, x)


@pytest.mark.parametrize("made", [lambda own: own * 0.5, lambda own: -own, lambda own: -(own * 2)])
def test_a_derivative_that_is_one_number(made):
    assert without_ones(lambda writer, c, x: c * made(ones(writer, x)).unsqueeze(1), (2, 4, 3), (2, 3)) == ["mul"]


@pytest.mark.parametrize("smaller", [(2, 3), (2, 1), ()])
def test_ones_times_what_readers_spread(smaller):
    def write(writer, c, x, y):
        return c * (ones(writer, x) * y).unsqueeze(1)

    assert "ones_like" not in without_ones(write, (2, 4, 3), (2, 3), smaller)


@pytest.mark.parametrize("smaller", [(2, 3), (2, 1)])
def test_ones_over_something(smaller):
    def write(writer, c, x, y):
        return c * (ones(writer, x) / y).unsqueeze(1)

    assert without_ones(write, (2, 4, 3), (2, 3), smaller) == ["reciprocal", "unsqueeze", "mul"]


@pytest.mark.parametrize("read", [
    lambda c, d: d,  # the result itself
    lambda c, d: d.sum(1),
    lambda c, d: c.sum(2, True) * d.unsqueeze(1),  # columns that are spread themselves
    lambda c, d: d.unsqueeze(2) * c.transpose(1, 2),
])
def test_where_the_whole_is_needed_it_stays(read):
    def write(writer, c, x, y):
        return read(c, ones(writer, x) * y)

    assert "ones_like" in without_ones(write, (2, 4, 3), (2, 3), (2, 1))
