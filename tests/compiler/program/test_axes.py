"""Two spellings of one call have one set of arguments."""

import pytest
import torch

from hbpcompiler.compiler.program.axes import axes_from_the_front
from hbpcompiler.compiler.program.shapes import annotate
from hbpcompiler.compiler.program.writer import Writer


def arguments(make):
    """Those of the last call on a tensor [4, 3, 2], its own left out."""
    writer = Writer()
    made = make(writer.placeholder("x"))
    writer.graph.output(made.node)
    annotate(writer.graph, lambda batch: [torch.empty(4, 3, 2, device="meta")])
    return axes_from_the_front(made.node)[1:]


@pytest.mark.parametrize(("one", "other"), [
    (lambda x: x.flatten(-2), lambda x: x.flatten(1)),
    (lambda x: x.flatten(1), lambda x: x.flatten(1, 2)),
    (lambda x: x.sum(-1), lambda x: x.sum(2)),
    (lambda x: x.sum((-1, 0)), lambda x: x.sum((2, 0))),
    (lambda x: x.transpose(-1, -2), lambda x: x.transpose(2, 1)),
])
def test_one_call(one, other):
    assert arguments(one) == arguments(other)


@pytest.mark.parametrize(("one", "other"), [
    (lambda x: x.flatten(1), lambda x: x.flatten(0, 1)),
    (lambda x: x.sum(1), lambda x: x.sum(2)),
])
def test_two_calls(one, other):
    assert arguments(one) != arguments(other)


def test_what_adds_axes_is_left_alone():
    assert arguments(lambda x: x.unsqueeze(-1)) == (-1,)


def test_functions_are_left_alone():
    assert arguments(lambda x: torch.flatten(x, -2)) == (-2,)
