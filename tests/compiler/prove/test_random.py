"""Models that draw: under one random state, or by averages where a program cannot draw what the model draws."""

import os
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import hbpcompiler as hbp
from hbpcompiler.compiler.prove.by_form import ByForm
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.expectation import RUNS, in_expectation
from hbpcompiler.compiler.prove.prove import prove
from hbpcompiler.compiler.trace.batch import batch_of
from tests.compiler.prove.test_agreement import CPU, batch, chain
from tests.selection import few


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


def dropped_for_nothing(h):
    F.dropout(h, 0.5)
    return F.dropout(h, 0.5)


def checkpointed(h):
    torch.rand(3)
    return checkpoint(F.dropout, checkpoint(F.dropout, h, use_reentrant=False), use_reentrant=False)


@few(2, "further cases of one kind")
@pytest.mark.parametrize("function", [
    drawn_for_nothing, F.gumbel_softmax, checkpointed, lambda h: h * torch.empty_like(h).exponential_(),
    lambda h: h * torch.empty_like(h).geometric_(0.5), lambda h: h * torch.empty_like(h).log_normal_(),
    lambda h: torch.tanh(h * torch.empty_like(h).cauchy_()), lambda h: drawn_for_nothing(h) * torch.randn_like(h),
], ids=["unused", "gumbel", "checkpoint", "exponential", "geometric", "log_normal", "cauchy", "two"])
def test_draws_by_their_form(function):
    torch.manual_seed(0)
    model = Function(lambda h: function(h) * h).double()
    X, y = batch()
    compiled = hbp.compile(model, quantities=["grad", "diag_h"])
    compiled(X.double(), y)
    table = compiled.verify(X.double(), y)
    assert table.agrees, str(table)
    assert all(line.compared for line in table)
    assert not table.notes


def test_draws_by_form_are_repeated():
    numbers = []
    for unused in (0, 5):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        with drawing(replace(Draws.now(CPU), by_form=True)) as forms:
            assert isinstance(forms, ByForm)
            torch.rand(unused)
            first, other = torch.rand(2), torch.randn(2)
            state = torch.get_rng_state()
            second = torch.rand(2)
            torch.set_rng_state(state)
            assert torch.equal(torch.rand(2), second)
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(first, second)
        assert ("rand", 2) in forms.drawn
        numbers.append((first, other, second))
    assert all(map(torch.equal, *numbers))


class Scaled(torch.autograd.Function):
    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g * Scaled.factor


def test_wrong_derivatives_beside_other_draws(monkeypatch):
    monkeypatch.setattr(Scaled, "factor", 0.9)
    torch.manual_seed(0)
    with pytest.raises(hbp.ProofError, match=r"grad of 'layer\.weight'"):
        hbp.compile(Function(lambda h: drawn_for_nothing(Scaled.apply(h))), quantities=["grad"])(*batch())
    with pytest.raises(hbp.ProofError, match="averages over draws do not tell"):
        hbp.compile(Function(lambda h: dropped_for_nothing(Scaled.apply(h))), quantities=["grad"])(*batch())
    monkeypatch.setattr(Scaled, "factor", 1.0)
    hbp.compile(Function(lambda h: drawn_for_nothing(Scaled.apply(h))), quantities=["grad"])(*batch())


@pytest.mark.parametrize("dropout", [F.dropout, drawn_for_nothing])
def test_another_forward_is_no_other_draw(dropout, monkeypatch):
    """A few percent were taken for noise."""
    torch.manual_seed(0)
    monkeypatch.setenv("TIMES", "1.0")  # which nobody watches
    compiled = hbp.compile(Function(lambda h: dropout(h) * float(os.environ["TIMES"])), quantities=["grad"])
    compiled(*batch())
    candidate, data = compiled._candidate(*compiled._program_used()), batch_of(batch())
    assert prove(candidate, data, Draws.now(CPU)).agrees
    monkeypatch.setenv("TIMES", "1.1")
    table = prove(candidate, data, Draws.now(CPU))
    assert not table.agrees
    assert not table.notes


def test_other_draws_are_compared_on_average():
    torch.manual_seed(0)
    compiled = hbp.compile(Function(dropped_for_nothing), quantities=["grad", "diag_ggn"], example_inputs=batch())
    table = compiled.verify(*batch())
    assert table.agrees, str(table)
    assert "averages over many draws" in str(table)
    assert f"averages over {RUNS} draws" in str(table)
    assert "the model draws otherwise" in str(table)


def test_a_wrong_mean_is_seen_on_average():
    def own(draws):
        return {("grad", "w"): torch.randn(4) + 1, ("grad", "v"): torch.randn(4), ("loss", ""): torch.ones(())}

    def right(draws):
        torch.rand(1)
        return {("grad", "w"): torch.randn(4), ("grad", "v"): torch.randn(4), ("loss", ""): torch.ones(())}

    lines = {line.key: line for line in in_expectation(own, right, Draws.now(CPU))}
    assert [lines[key].agrees for key in (("grad", "w"), ("grad", "v"), ("loss", ""))] == [False, True, True]


def test_half_a_gradient_is_seen_along_its_mean():
    def right(draws):
        return {("grad", "w"): torch.randn(400) + 0.25, ("loss", ""): torch.ones(())}

    def own(draws):
        return {key: 0.5 * number if key[0] == "grad" else number for key, number in right(draws).items()}

    def as_right(draws):
        torch.rand(1)
        return right(draws)

    lines = {line.key: line for line in in_expectation(own, as_right, Draws.now(CPU))}
    assert "along their mean" in lines["grad", "w"].how
    assert not lines["grad", "w"].agrees
    assert all(line.agrees for line in in_expectation(right, as_right, Draws.now(CPU)))


def test_pythons_draws_are_named():
    model = Function(lambda h: h * (1 + random.random()))
    with pytest.raises(hbp.HbpError) as caught:
        hbp.compile(model, quantities=["grad"], example_inputs=batch())
    assert "Python's" in str(caught.value)
