"""What a node calls, and whether equal ones can be shared."""

import operator

import pytest
import torch
from torch import fx

from hbpcompiler.compiler.program.nodes import called, is_pure, replace_by, writes_in_place
from hbpcompiler.compiler.program.writer import Writer


def node(make):
    writer = Writer()
    return make(writer.placeholder("x")).node


@pytest.mark.parametrize(("make", "name", "in_place", "pure"), [
    (lambda x: torch.tanh(x), "tanh", False, True),
    (lambda x: x.flatten(1), "flatten", False, True),
    (lambda x: x + 1, "add", False, True),
    (lambda x: (x > 1) & (x < 2), "and_", False, True),
    (lambda x: (x > 1) | (x < 2), "or_", False, True),
    (lambda x: x.add_(1), "add_", True, False),
    (lambda x: x.__matmul__(x), "matmul", False, True),
    (lambda x: x.new_zeros(3), "new_zeros", False, False),
    (lambda x: torch.rand_like(x), "rand_like", False, False),
    (lambda x: x.bernoulli_(), "bernoulli_", True, False),
])
def test_nodes(make, name, in_place, pure):
    made = node(make)
    assert called(made) == name
    assert writes_in_place(made) == in_place
    assert is_pure(made) == pure


def test_a_placeholder_is_not_shared():
    graph = fx.Graph()
    assert not is_pure(graph.placeholder("x"))


def test_another_takes_the_place_and_the_name():
    graph = fx.Graph()
    x = graph.placeholder("x")
    old, new = graph.call_function(operator.neg, (x,)), graph.call_function(torch.neg, (x,))
    old.meta["hint"] = "negative"
    graph.output(old)
    replace_by(graph, old, new)
    assert new.meta["hint"] == "negative"
    assert [user.op for user in new.users] == ["output"]
    assert old not in list(graph.nodes)
