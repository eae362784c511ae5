"""Operations on inputs alone, through which no derivative goes: torch's own, with all that they are told."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp


class OfInputs(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 3).double()

    def forward(self, x):
        return self.layer(self.function(x))


def test_slopes_that_are_drawn():
    """The rule of rrelu is that of its mean slope, and refuses to be another."""
    torch.manual_seed(0)
    model = OfInputs(lambda x: nn.functional.rrelu(x, training=True))
    X, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))
    compiled = hbp.compile(model, quantities=["grad"])
    for seed in range(3):
        torch.manual_seed(seed)
        found = compiled(X, y).loss
        torch.manual_seed(seed)
        torch.testing.assert_close(found, nn.functional.cross_entropy(model(X), y).detach())


def test_what_has_no_shape_without_values():
    model = OfInputs(lambda x: x * torch.distributions.Dirichlet(torch.ones(4).double()).sample())
    with pytest.raises(hbp.HbpError, match=r"(?s)Dirichlet.* cannot be drawn in a program; draw them outside"):
        hbp.compile(model, quantities=["grad"])(torch.randn(6, 4).double(), torch.randint(3, (6,)))
