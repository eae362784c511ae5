"""Code that treats a batch of one in another way: torch.export does not follow it, so it is refused there alone."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.conditions.one_sample import ways_of_one, ways_of_one_noted
from hbpcompiler.errors import ModelError
from tests.selection import few


class Doubling(nn.Module):
    def __init__(self, condition):
        super().__init__()
        self.condition, self.layer = condition, nn.Linear(2, 3)

    def forward(self, x):
        found = self.layer(x)
        return 2 * found if self.condition(x) else found


def batch(samples):
    return torch.randn(samples, 2, dtype=torch.float64), torch.arange(samples) % 3


def is_right(compiled, model, X, y):
    expected = torch.autograd.grad(nn.CrossEntropyLoss()(model(X), y), [*model.parameters()])
    torch.testing.assert_close([*compiled(X, y).grad.values()], [*expected])


@few(2, "further cases of one kind")
@pytest.mark.parametrize("condition", [
    lambda x: len(x) == 1, lambda x: x.shape[0] != 1, lambda x: x.size(0) > 1, lambda x: x.size(0) < 2,
    lambda x: 3 * len(x) <= 5,
])
def test_a_way_of_one_sample(condition):
    model = Doubling(condition).double()
    compiled = hbp.compile(model, quantities=["grad"], verify=False)
    for samples in (6, 2):
        is_right(compiled, model, *batch(samples))
    state, program = dict(compiled.state), compiled.program
    for samples in (1, 0):
        with pytest.raises(ModelError, match=r"(?s)a batch of \d: its code goes a way of its own.*lambda x"):
            compiled(*batch(samples))
        with pytest.raises(AssertionError, match="batches of N samples with N != 1"):
            program(state, *batch(samples))


@pytest.mark.parametrize("condition", [
    lambda x: max(1, len(x)) > 4, lambda x: len(x) >= 1, lambda x: len(x) / max(x.shape[0], 1) > 0.5,
    lambda x: x.shape[1] == 1, lambda x: len(x) is None,
])
def test_what_is_no_way_of_one(condition):
    model = Doubling(condition).double()
    compiled = hbp.compile(model, quantities=["grad"], verify=False)
    for samples in (6, 1):
        is_right(compiled, model, *batch(samples))


def test_torch_compares_as_before_afterwards():
    before = torch.SymInt.__eq__
    with ways_of_one_noted():
        assert torch.SymInt.__eq__ is not before
    assert torch.SymInt.__eq__ is before
    assert ways_of_one(object()) == ()
