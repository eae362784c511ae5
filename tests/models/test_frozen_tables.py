"""Tables of positions that are not trained: tensors without samples, whose first axis is one like the others."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp


@pytest.mark.parametrize("resized", [
    lambda q: nn.functional.interpolate(q.view(1, 1, 3), 5, mode="linear")[0, 0],
    lambda q: nn.functional.interpolate(q.view(1, 1, 3), 5)[0, 0],
    lambda q: nn.functional.interpolate(q.view(1, 1, 1, 3), (2, 5), mode="bicubic")[0, 0, 1],
    lambda q: nn.functional.instance_norm(q.view(1, 1, 3)).flatten().repeat(2)[:5],
], ids=["linear", "nearest", "bicubic", "instance norm"])
def test_what_is_done_to_a_frozen_table(resized):
    """It is zero at first, as such tables are, and later it is not."""
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
            self.register_buffer("table", torch.zeros(3))

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)) + resized(self.table))

    torch.manual_seed(0)
    model, loss = Placed().double(), nn.MSELoss()
    X, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    compiled = hbp.compile(model, loss, quantities=["grad"])
    compiled(X, y)
    model.table.normal_()
    expected = torch.autograd.grad(loss(model(X), y), model.first.weight)[0]
    torch.testing.assert_close(compiled(X, y).grad["first.weight"], expected)
