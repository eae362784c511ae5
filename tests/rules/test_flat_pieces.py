"""Pieces where an operation is flat: no infinite slope of what comes behind reaches what is before; torch selects."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp


def total(h):
    return h.sum(1, keepdim=True)


FUNCTIONS = {
    "relu": lambda h: total(F.relu(h)).sqrt(),
    "powers": lambda h: (F.relu(h) ** 3).mean(1, keepdim=True) ** (1 / 3),
    "variance": lambda h: F.relu(h).var(1, keepdim=True).sqrt(),
    "clamp": lambda h: total(h.clamp(min=0)).sqrt(),
    "clamp_to": lambda h: total(torch.clamp_min(h, torch.zeros_like(h[0]))).sqrt(),
    "hardtanh": lambda h: total(F.hardtanh(h, 0, 6)).sqrt(),
    "hardsigmoid": lambda h: total(F.hardsigmoid(4 * h)).sqrt(),
    "hardswish": lambda h: (total(F.hardswish(4 * h)) ** 2) ** 0.25,
    "hardshrink": lambda h: total(F.hardshrink(h + 0.9, 0.2) ** 2).sqrt(),
    "threshold": lambda h: total(F.threshold(h, 0.1, 0.0)).sqrt(),
    "maximum": lambda h: total(torch.maximum(h, torch.zeros_like(h))).sqrt(),
    "of_two": lambda h: total(torch.maximum(h, -2 - h) - torch.maximum(-1.0 * h, -2 - h)).clamp(min=0).sqrt(),
    "amax": lambda h: F.relu(h).amax(1, keepdim=True).sqrt(),
    "max_pool": lambda h: F.max_pool1d(F.relu(h), 3).sqrt(),
    "where": lambda h: torch.where(total(h) > 0, F.relu(h) / total(F.relu(h)), 0 * h).amax(1, keepdim=True),
    "norm": lambda h: F.relu(h).norm(dim=1, keepdim=True),
}


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(3, 3), nn.Linear(1, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3))
            self.first.bias.zero_()

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_flat_piece_passes_no_infinite_slope(name):
    torch.manual_seed(0)
    model, loss = Net(FUNCTIONS[name]).double(), nn.MSELoss()
    x, y = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    x[:, 0] = 1
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    compiled(x, y)
    x[1] = -1
    found = compiled(x, y)
    parameter = model.first.bias
    (gradient,) = torch.autograd.grad(loss(model(x), y), parameter, create_graph=True)
    assert gradient.isfinite().all()
    torch.testing.assert_close(found.grad["first.bias"], gradient.detach(), rtol=1e-10, atol=1e-12)
    if name == "hardsigmoid":
        return  # torch has no second derivative of it
    diagonal = torch.stack([torch.autograd.grad(entry, parameter, retain_graph=True)[0][i]
                            if entry.requires_grad else torch.zeros(()) for i, entry in enumerate(gradient)])
    if diagonal.isfinite().all():  # torch's own double backward may multiply
        torch.testing.assert_close(found.diag_h["first.bias"], diagonal, rtol=1e-10, atol=1e-12)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(1, 2)

    def forward(self, x):
        h = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.last(h.flatten(1).sum(1, keepdim=True).sqrt())


def test_nor_do_columns_kept_behind_a_pool():
    torch.manual_seed(0)
    model, loss = Pooled().double(), nn.MSELoss()
    x, y = torch.randn(3, 1, 8, 8).double(), torch.randn(3, 2).double()
    with torch.no_grad():
        model.first.bias.fill_(-0.1)
    compiled = hbp.compile(model, loss, ["diag_h"])
    compiled(x, y)
    assert "pooled_" in compiled.code
    x[1] = 0
    gradient = torch.autograd.grad(loss(model(x), y), model.first.bias, create_graph=True)[0]
    right = [torch.autograd.grad(entry, model.first.bias, retain_graph=True)[0][i] for i, entry in enumerate(gradient)]
    torch.testing.assert_close(compiled(x, y).diag_h["first.bias"], torch.stack(right), rtol=1e-10, atol=1e-12)
