"""A length of -1 is said where nothing is left to work it out from: programs of batches without samples."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.optimise.said_lengths import say_lengths
from hbpcompiler.quantities import WITHOUT_VECTORS
from tests.compiler.optimise.small import lines, program, run, shaped, total_of
from tests.graph_models import FEW_MODELS, made

MEANS = {"second_moment", "variance", "ekfac"}
"""Of no samples they have no value; so has A of the factors."""


def said(write, shape=(-1, 6, 4)):
    """The last line after the pass, which leaves the numbers as they are."""
    graph = shaped(program(write, "x"), shape)
    x = torch.randn([5 if length == -1 else length for length in shape])
    before = run(graph, x)
    say_lengths(graph)
    assert torch.equal(run(graph, x), before)
    run(graph, x[:0])
    return lines(graph)[-1]


def test_the_operands_own_length_is_read_from_it():
    assert said(lambda writer, x: x.reshape(x.shape[0], -1, 2, 2)) == "reshape(x, getitem, getitem_1, 2, 2)"
    assert said(lambda writer, x: x.reshape((x.shape[0], -1, 2, 2))) == "reshape(x, (getitem, getitem_1, 2, 2))"
    assert said(lambda writer, x: x.flatten(0, 1).unflatten(0, (x.shape[0], -1))).endswith("0, (getitem, 6))")


def test_another_length_is_a_number():
    assert said(lambda writer, x: x.reshape(x.shape[0], 3, -1)) == "reshape(x, getitem, 3, 8)"
    assert said(lambda writer, x: torch.unflatten(x.flatten(), -1, [x.shape[0], -1])).endswith("-1, [getitem, 24])")


def test_what_numbers_alone_stand_beside_stays():
    assert said(lambda writer, x: x.reshape(-1, 3, 8)) == "reshape(x, -1, 3, 8)"
    assert said(lambda writer, x: x.unflatten(1, (2, -1))) == "unflatten(x, 1, (2, -1))"
    assert said(lambda writer, x: x.expand(x.shape[0], -1, 4)) == "expand(x, getitem, -1, 4)"


def test_in_a_loop_chunks_of_columns_may_be_of_any_number():
    graph = shaped(total_of(lambda x, w: x.reshape(x.shape[0], -1, 3).sum((0, 1))), (-1, 6), (3,))
    body = next(node.target.body for node in graph.nodes if hasattr(node.target, "body"))
    say_lengths(body)
    assert not any("-1" in line for line in lines(body))


@pytest.mark.parametrize("name", FEW_MODELS)
def test_a_summed_loss_of_no_samples_gives_zeros(name):
    model, x, y = made(name)
    quantities = set(WITHOUT_VECTORS) - {"kfra", "clipped_grad"}  # of chains; with an argument
    compiled = hbp.compile(model, nn.CrossEntropyLoss(reduction="sum"), quantities, example_inputs=(x, y))
    alone, called = compiled.program(dict(compiled.state), x[:0], y[:0]), compiled(x[:0], y[:0])
    assert alone.loss == called.loss == 0
    for quantity in quantities - MEANS:
        compare(getattr(alone, quantity), called[quantity])


def compare(found, wanted):
    """The same shapes, and zeros."""
    if isinstance(wanted, torch.Tensor):
        assert found.shape == wanted.shape
        assert not found.any()
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            compare(found[key], wanted[key])
    elif hasattr(wanted, "B"):
        compare(found.B, wanted.B)
        assert found.A is None or found.A.isnan().all() or not found.A.any()
    elif wanted is not None:
        for one, other in zip(found, wanted, strict=True):
            compare(one, other)
