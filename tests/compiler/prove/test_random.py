"""Models that draw: under one random state, or by averages where a program cannot draw what the model draws."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.draws import Draws
from hbpcompiler.compiler.prove.expectation import RUNS, in_expectation
from tests.compiler.prove.test_agreement import CPU, batch, chain


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function

    def forward(self, x):
        return self.head(self.function(self.layer(x)))


def test_the_same_draws():
    layers = nn.Dropout(0.3), nn.Unflatten(1, (5, 1)), nn.Dropout1d(0.5), nn.Flatten(), nn.AlphaDropout(0.2)
    compiled = hbp.compile(chain(*layers), quantities=["grad"], example_inputs=batch())
    table = compiled.verify(*batch())
    assert table.agrees
    assert not table.notes
    table = hbp.compile(Function(lambda h: h * torch.randn(h.shape)), quantities=["diag_ggn"]).verify(*batch())
    assert table.agrees
    assert not any("averages" in note for note in table.notes)


def drawn_for_nothing(h):
    torch.rand(3)
    return F.dropout(h, 0.5)


def test_other_draws_are_compared_on_average():
    torch.manual_seed(0)
    compiled = hbp.compile(Function(drawn_for_nothing), quantities=["grad"], example_inputs=batch())
    table = compiled.verify(*batch())
    assert table.agrees, str(table)
    assert "averages over many draws" in str(table)
    assert f"averages over {RUNS} draws" in str(table)


def test_a_wrong_mean_is_seen_on_average():
    def own(draws):
        return {("grad", "w"): torch.randn(4) + 1, ("grad", "v"): torch.randn(4), ("loss", ""): torch.ones(())}

    def right(draws):
        torch.rand(1)
        return {("grad", "w"): torch.randn(4), ("grad", "v"): torch.randn(4), ("loss", ""): torch.ones(())}

    lines = {line.key: line for line in in_expectation(own, right, Draws.now(CPU))}
    assert [lines[key].agrees for key in (("grad", "w"), ("grad", "v"), ("loss", ""))] == [False, True, True]


def test_pythons_draws_are_named():
    model = Function(lambda h: h * (1 + random.random()))
    with pytest.raises(hbp.HbpError) as caught:
        hbp.compile(model, quantities=["grad"], example_inputs=batch())
    assert "Python's" in str(caught.value)
