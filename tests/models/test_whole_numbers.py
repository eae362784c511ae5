"""Truths and whole numbers that a model or a loss computes with: as torch promotes them, also where a first batch would
not show it."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp

MASKS = {
    "times one": lambda t: (t > 0) * 1 + (t > 0.3) * 1,
    "one of them": lambda t: (t > 0) * 1 + (t > 0.3),
    "plus nothing": lambda t: ((t > 0) + 0) + ((t > 0.3) + 0),
    "minus": lambda t: 1 - (t > 0.3) * 1,
    "over one": lambda t: (t > 0) / 1 + (t > 0.3) / 1,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_that_are_added_count(mask):
    def loss(output, target):
        return (output.square() * mask(target)).mean()

    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    X, apart = torch.randn(6, 3, dtype=torch.float64), 0.2 * torch.rand(6, 2, dtype=torch.float64)
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for target in (apart, torch.randn(6, 2, dtype=torch.float64)):  # of the first only one mask holds anywhere
        expected = torch.autograd.grad(loss(model(X), target), model.weight)[0]
        torch.testing.assert_close(compiled(X, target).grad["weight"], expected)


BYTES = {
    "times one": lambda x: x * 1.0 - 5,
    "over one": lambda x: x / 1 - 5,
    "plus nothing": lambda x: x + 0.0 - 5,
    "bytes": lambda x: (x * 1 + 250).double(),
}


@pytest.mark.parametrize("read", BYTES.values(), ids=BYTES)
def test_bytes_are_what_torch_makes_of_them(read):
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(read(x).to(self.layer.weight.dtype) / 4)

    torch.manual_seed(0)
    model, loss = Pixels().double(), nn.MSELoss()
    y = torch.randn(4, 2, dtype=torch.float64)
    compiled = hbp.compile(model, loss, quantities=["grad"])
    for low, high in ((5, 6), (0, 10)):  # the first wraps nowhere
        x = torch.randint(low, high, (4, 3), dtype=torch.uint8)
        expected = torch.autograd.grad(loss(model(x), y), model.layer.weight)[0]
        torch.testing.assert_close(compiled(x, y).grad["layer.weight"], expected)
