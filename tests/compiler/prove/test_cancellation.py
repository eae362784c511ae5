"""Where the diagonal of a Hessian is a difference of squares that cancel: no number, but a word."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp


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


@pytest.mark.parametrize("quantities", [["diag_h"], ["trace_h"], ["batch_diag_h", "grad"], ["diag_h_split"]])
def test_what_has_cancelled_is_no_result(quantities):
    compiled = hbp.compile(Scan(), nn.MSELoss(), quantities=quantities)
    with pytest.raises(hbp.ProofError, match=r"(?s)(diag|trace)_h.*off by .*Two values are multiplied"):
        compiled(*batch(8))
    torch.testing.assert_close(hbp.compile(Scan(), nn.MSELoss(), quantities=["grad"])(*batch(8)).grad["rate"],
                               torch.autograd.grad(nn.MSELoss()((model := Scan())(batch(8)[0]), batch(8)[1]),
                                                   model.rate)[0])


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
