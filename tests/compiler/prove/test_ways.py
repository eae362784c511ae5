"""Branches that a trace passed on one way: whether single samples show that they make no difference."""

import ast

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.ways import check_ways
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.ways import Way
from tests.agreement import agree
from tests.compiler.trace.test_ways import Mixture


def doubled(self, x, weight, choice):
    if (choice == 0).any():
        x = x + 1
    return x


def of_many(self, x, weight, choice):
    rows = torch.where(choice == 0)[0]
    if rows.numel() > 0:
        x = x * 2
    return x


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("routed", [doubled, of_many])
def test_branches_that_choose(routed, verify):
    """Also where no sample of the first batch goes the other way, so that nothing is known of it."""
    torch.manual_seed(1)
    model = Mixture(routed).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    with pytest.raises(hbp.CompileError, match=r"control flow depends on the values(.|\n)*test_ways\.py:\d+: if "):
        hbp.compile(model, quantities=["grad"], verify=verify)(x, y)
    assert all(parameter.grad is None for parameter in model.parameters())


class Clamped(nn.Module):
    """Beside what the branch saves it does what nothing on the first batch shows."""

    def __init__(self, length):
        super().__init__()
        self.first, self.expert, self.length = nn.Linear(3, 3), nn.Linear(3, 2), length
        self.register_buffer("on", torch.ones(1))

    def forward(self, x):
        h = self.first(x)
        out = h[:, :2].clone()
        rows = torch.where(x[:, 0] > 0)[0]
        if len(self.on.nonzero() if self.length else rows):
            out = out.clamp(-4, 4)
            out[rows] = self.expert(h[rows])
        return out


@pytest.mark.parametrize("length", [False, True])
def test_what_a_branch_does_beside(length):
    """To numbers of another size; or where a buffer decides, which is full on the first batch."""
    torch.manual_seed(0)
    model, x, y = Clamped(length).double(), torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,))
    with pytest.raises(hbp.CompileError, match=r"control flow depends on the values(.|\n)*test_ways\.py:\d+: if len"):
        hbp.compile(model, quantities=["grad"])(x, y)


def where_any(mask, function, h):
    if mask.any():
        h = function(h)
    return h


class Helped(nn.Module):
    """A helper's branch saves work at one place, and chooses at another."""

    def __init__(self, chooses):
        super().__init__()
        self.first, self.expert, self.chooses = nn.Linear(3, 2), nn.Linear(2, 2), chooses

    def forward(self, x):
        h, mask = self.first(x), x[:, 1] > 0
        h = where_any(mask, lambda h: torch.where(mask[:, None], self.expert(h), h), h)
        return where_any(x[:, 0] > 0, lambda h: 2 * h, h) if self.chooses else h


def test_a_helper_is_looked_at_for_each_that_calls_it():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,))
    x[:, 0] = x[:, 0].abs()
    model = Helped(chooses=False).double()
    agree(hbp.compile(model, quantities=["grad"])(x, y), model, nn.CrossEntropyLoss(), [x], y)
    with pytest.raises(hbp.CompileError, match=r"test_ways\.py:\d+: if mask\.any"):
        hbp.compile(Helped(chooses=True).double(), quantities=["grad"])(x, y)


def test_both_ways_have_to_be_gone():
    """`check_ways` itself: of a branch that no sample meets nothing is known."""
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    compiled = hbp.compile(model, quantities=["grad"], example_inputs=(x, y))
    candidate = compiled._candidate(*compiled._program_used())
    (statement,) = ast.parse("if rows.any(): x = 3").body
    check_ways(candidate, batch_of((x, y)), [])
    with pytest.raises(hbp.CompileError, match=r"nowhere\.py:1: if rows\.any"):
        check_ways(candidate, batch_of((x, y)), [Way("nowhere.py", statement, "nowhere.py:1: if rows.any():")])
