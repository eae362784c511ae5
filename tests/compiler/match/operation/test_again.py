"""A graph's values, made again for another number of samples."""

import pytest
import torch

from hbpcompiler.compiler.match.operation.again import Again, lengths, samples_axis
from tests.hand_made import mlp

GRAPH = mlp()
LINEAR, TANH, *_ = GRAPH.operations


def given(value):
    """Inputs and parameters; nothing of what operations make."""
    if value.name in GRAPH.makers:
        return None
    generator = torch.Generator().manual_seed(len(value.shape))
    return torch.rand(lengths(value, 5), generator=generator, dtype=value.dtype)


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=str)
def test_operations_are_called_on_what_is_given(device):
    again = Again(GRAPH, 5, given, device)
    made = again.value(TANH.output)
    x, weight, *bias = (given(value) for value in LINEAR.tensors.values())
    assert torch.equal(made, torch.nn.functional.linear(x, weight, *bias).tanh())
    assert again.value(TANH.output) is made
    assert again.bound(TANH).output is made


def test_what_neither_is_given_nor_made_is_an_error():
    with pytest.raises(KeyError):
        Again(GRAPH, 5, lambda value: None).value(GRAPH.inputs[0])


def test_the_axis_of_the_samples():
    assert samples_axis(LINEAR.output) == 0
    assert samples_axis(LINEAR.tensors["weight"]) is None
