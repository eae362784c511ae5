"""A parameter without numbers, as of no classes or no channels: results of its shape."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.selection import few

SHAPES = {"grad": (0, 3), "batch_grad": (5, 0, 3), "diag_h": (0, 3), "variance": (0, 3), "batch_diag_h": (5, 0, 3),
          "sqrt_ggn": (5, 2, 0, 3), "jacobian": (5, 3, 0, 3)}


class WithNothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.nothing = nn.Linear(4, 3), nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.linear(x) + self.nothing.sum(0)


def data():
    torch.manual_seed(0)
    return WithNothing().double(), torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])


@few(3, "further cases of one kind")
@pytest.mark.parametrize("name", SHAPES)
def test_results_have_its_shape(name):
    model, X, y = data()
    result = getattr(hbp.compile(model, nn.CrossEntropyLoss(), [name])(X, y), name)
    assert result["nothing"].shape == SHAPES[name]
    if name in ("grad", "diag_h"):
        wanted = reference(model.linear, nn.CrossEntropyLoss(), [X], y, name)["weight"]
        torch.testing.assert_close(result["linear.weight"], wanted)


def test_products_with_a_ggn():
    model, X, y = data()
    loss = nn.CrossEntropyLoss()
    found = [hbp.operator(model, loss, [(X, y)], blocks=blocks) @ torch.eye(15, dtype=torch.float64)
             for blocks in ("passes", "programs")]
    torch.testing.assert_close(*found)
