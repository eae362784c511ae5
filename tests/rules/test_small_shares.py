"""Logarithms of shares of a softmax whose squares are beyond single precision: curvature as in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp


class Shares(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return torch.softmax(self.a(x), 1)


LOSSES = {"entropy": lambda o, y: -(o * torch.log(o + 1e-30)).sum(1).mean(),
          "xlogy": lambda o, y: -torch.xlogy(o, o).sum(1).mean(),
          "entr": lambda o, y: torch.special.entr(o).sum(1).mean(),
          "nll_of_log": lambda o, y: F.nll_loss(o.log(), y)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore::hbpcompiler.IndefiniteCurvatureWarning")
def test_curvature_of_confident_shares_is_finite_and_right(name):
    loss = LOSSES[name]
    torch.manual_seed(0)
    model = Shares()
    compiled = hbp.compile(model, loss, ["diag_h"])
    x, y = torch.tensor([[1.0, -1, 0.5], [0.2, 0.1, -2], [2, 0, 0], [0, 1, 0]]), torch.tensor([0, 1, 2, 0])
    compiled(x, y)
    x = 50 * x
    with torch.no_grad():
        shares = model(x)
        y = shares.argmax(1)
    assert 0 < shares.min() < 1e-21
    found = compiled(x, y).diag_h["a.bias"]
    double = Shares().double()
    double.load_state_dict(model.state_dict())
    gradient = torch.autograd.grad(loss(double(x.double()), y), double.a.bias, create_graph=True)[0]
    right = [torch.autograd.grad(entry, double.a.bias, retain_graph=True)[0][i] for i, entry in enumerate(gradient)]
    torch.testing.assert_close(found.double(), torch.stack(right), rtol=2e-5, atol=1e-7)
