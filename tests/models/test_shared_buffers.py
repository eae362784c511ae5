"""Buffers that a model, or a loss, has under several names."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from tests.agreement import agree
from tests.selection import few

QUANTITIES = ["grad", "batch_grad", "diag_ggn", "diag_h"]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("scale", torch.rand(4))

    def forward(self, x):
        return torch.sin(x @ self.weight * self.scale)


class Layers(nn.Module):
    """One layer under the names `inner`, `other` and `listed.0`."""

    def __init__(self, used):
        super().__init__()
        self.inner = Scaled()
        self.other, self.listed, self.used = self.inner, nn.ModuleList([self.inner]), used
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        for name in self.used:
            x = self.get_submodule(name)(x)
        return self.out(x)


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        shared = torch.rand(4, dtype=torch.float64)
        self.register_buffer("one", shared)
        self.register_buffer("other", shared)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(x * self.other + self.one)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(4)
        norm.running_mean.uniform_()
        self.layers = nn.Sequential(nn.Linear(4, 4), norm)
        self.norm, self.out = norm, nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.layers(x))))


MODELS = {
    "first name": lambda: Layers(["inner"]), "second name": lambda: Layers(["other"]),
    "in a list": lambda: Layers(["listed.0"]), "all names": lambda: Layers(["inner", "other", "listed.0"]),
    "one tensor": TwoNames, "batch norm": Normalised,
}


@few(2, "further cases of one kind")
@pytest.mark.parametrize("name", MODELS)
def test_every_name_is_the_same_buffer(name):
    torch.manual_seed(0)
    model, loss = MODELS[name]().double().eval(), nn.CrossEntropyLoss()
    X, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    agree(hbp.compile(model, loss, QUANTITIES)(X, y), model, loss, [X], y)


def test_two_names_become_two_buffers():
    torch.manual_seed(0)
    model, loss = TwoNames().double(), nn.CrossEntropyLoss()
    X, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    assert model.one is model.other
    compiled = hbp.compile(model, loss, ["grad"])
    agree(compiled(X, y), model, loss, [X], y)
    model.other = torch.rand(4, dtype=torch.float64)
    agree(compiled(X, y), model, loss, [X], y)
    model.one.mul_(3)
    agree(compiled(X, y), model, loss, [X], y)
    model.one = model.other
    agree(compiled(X, y), model, loss, [X], y)


class Weighed(nn.Module):
    def __init__(self):
        super().__init__()
        shared = torch.rand(3, dtype=torch.float64)
        self.register_buffer("shift", shared)
        self.register_buffer("weight", shared)

    def forward(self, output, target):
        return ((output - target - self.shift) ** 2 * self.weight.abs()).mean()


def test_a_losss_buffer_under_two_names():
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3).double(), Weighed()
    X, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    agree(hbp.compile(model, loss, QUANTITIES)(X, y), model, loss, [X], y)
