"""Where the diagonal of a Hessian is a difference of squares that cancel: no number, but a word."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference

LONG = 30


class Scan(nn.Module):
    """A linear state-space model by two running sums: one grows as the other's factor falls."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        decay = (-torch.exp(self.rate) * x).cumsum(1)
        return (x * (-decay).exp()).cumsum(1) * decay.exp()


def batch(length):
    torch.manual_seed(0)
    return 1 + 2 * torch.rand(2, length, dtype=torch.float64), torch.randn(2, length, dtype=torch.float64)


def test_parts_of_what_has_cancelled_are_no_result():
    with pytest.raises(hbp.ProofError, match=r"(?s)diag_h.*off by .*Two values are multiplied"):
        hbp.compile(Scan(), nn.MSELoss(), quantities=["diag_h_split"])(*batch(8))


def test_values_of_different_sizes_do_not_cancel():
    X, y = batch(8)
    model, loss = Scan(), nn.MSELoss()
    found = hbp.compile(model, loss, quantities=["diag_h"])(X, y).diag_h
    torch.testing.assert_close(found["rate"], reference(model, loss, (X,), y, "diag_h")["rate"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("quantities", [["diag_h"], ["trace_h"], ["batch_diag_h", "grad"]])
def test_what_has_cancelled_is_no_result(quantities):
    """Over so many steps the sizes differ within a sample, which one unit cannot fit."""
    compiled = hbp.compile(Scan(), nn.MSELoss(), quantities=quantities)
    with pytest.raises(hbp.ProofError, match=r"(?s)(diag|trace)_h.*off by .*Two values are multiplied"):
        compiled(*batch(LONG))
    found, model = hbp.compile(Scan(), nn.MSELoss(), quantities=["grad"])(*batch(LONG)).grad["rate"], Scan()
    loss = nn.MSELoss()(model(batch(LONG)[0]), batch(LONG)[1])
    torch.testing.assert_close(found, torch.autograd.grad(loss, model.rate)[0])


def test_where_little_cancels_the_numbers_are_given():
    X, y = batch(2)
    model, loss = Scan(), nn.MSELoss()
    found = hbp.compile(model, loss, quantities=["diag_h"])(X, y).diag_h["rate"]
    (gradient,) = torch.autograd.grad(loss(model(X), y), model.rate, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(gradient, model.rate)[0], rtol=1e-8, atol=0)


def test_nothing_more_is_proven_where_no_values_meet():
    X, y = torch.randn(4, 3), torch.randn(4, 2)
    compiled = hbp.compile(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), nn.MSELoss(), quantities=["diag_h"])
    compiled(X, y)
    state, built = compiled._last
    assert not compiled._candidate(state, built).may_cancel
