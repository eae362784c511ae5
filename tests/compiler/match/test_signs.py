"""Losses that are multiplied by masks stay convex; what may be negative counts as such."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.signs import never_negative
from tests.agreement import agree
from tests.selection import few, slow
from tests.stages import matched


def crossed(output, target):
    return F.cross_entropy(output.flatten(0, 1), target[0].flatten(), reduction="none")


def squares(output):
    return (output.sum(-1) - 1) ** 2


CONVEX = {
    "no mask": lambda o, y: crossed(o, y).mean(),
    "a mean over a mask": lambda o, y: (crossed(o, y) * y[1].flatten()).sum() / y[1].sum(),
    "in floating numbers": lambda o, y: (squares(o) * y[1].double()).sum() / y[1].double().sum().clamp(min=1),
    "where": lambda o, y: torch.where(y[1], squares(o), 0.0).mean(),
    "filled": lambda o, y: crossed(o, y).view(y[1].shape).masked_fill(~y[1], 0.0).mean(),
    "an even power": lambda o, y: (squares(o) * y[2] ** 2).mean(),
    "absolute weights": lambda o, y: (squares(o) * (y[2].abs() + 0.5)).mean(),
    "one minus a mask, turned": lambda o, y: (squares(o) * (~y[1]).double().flip(0)).mean(),
}
UNKNOWN = {
    "weights": lambda o, y: (squares(o) * y[2]).mean(),
    "a difference": lambda o, y: (squares(o) * (y[1].double() - 0.5)).mean(),
    "a negative multiple": lambda o, y: (squares(o) * y[1] * -2).mean(),
    "concave": lambda o, y: (-squares(o) * y[1]).mean(),
    "an odd power": lambda o, y: (squares(o) * y[2] ** 3).mean(),
    "a number in the place of what is masked": lambda o, y: (squares(o) * torch.where(y[1], -1.0, y[2].abs())).mean(),
    "the other number": lambda o, y: (squares(o) * torch.where(y[1], y[2].abs(), -1.0)).mean(),
    "filled with a number": lambda o, y: (squares(o) * y[2].abs().masked_fill(y[1], -1.0)).mean(),
    "from below": lambda o, y: (squares(o) * y[2].clamp(min=-1)).mean(),
}


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    mask = torch.tensor([[True, False], [True, True], [False, False], [True, True]])
    return model, torch.randn(4, 2, 3).double(), (torch.randint(3, (4, 2)), mask, torch.randn(4, 2).double())


@few(1, "other masks")
@pytest.mark.parametrize("name", CONVEX)
def test_a_loss_times_what_is_not_negative(name):
    model, X, y = setting()
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, CONVEX[name], ["grad", "diag_ggn", "sqrt_ggn"])(X, y)
    agree(result, model, CONVEX[name], [X], y, ["grad", "diag_ggn"])
    for parameter, columns in result.sqrt_ggn.items():
        torch.testing.assert_close(columns.square().flatten(0, 1).sum(0), result.diag_ggn[parameter])


@few(3, "further cases of one kind")
@pytest.mark.parametrize("name", UNKNOWN)
def test_a_loss_times_what_may_be_negative(name):
    model, X, y = setting()
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        result = hbp.compile(model, UNKNOWN[name], ["diag_ggn"])(X, y)
    agree(result, model, UNKNOWN[name], [X], y)


@slow("optimizers whole")
def test_optimizers_take_a_mean_over_a_mask():
    model, X, y = setting()
    before = CONVEX["a mean over a mask"](model(X), y)
    optimizer = hbp.optim.KFLR(model, CONVEX["a mean over a mask"], lr=0.1, damping=0.1)
    torch.testing.assert_close(optimizer.step(X, y), before.detach())
    assert CONVEX["a mean over a mask"](model(X), y) < before


def test_values():
    class Loss(nn.Module):
        def forward(self, output, y):
            return ((output.exp() + output.abs() * (y > 0)) * output).mean()

    found = matched(nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2), loss=Loss())
    operations = {operation.name: operation.short for operation in found.graph.operations}
    signs = never_negative(found.graph)
    assert {operations[name] for name in signs} >= {"exp", "abs", "gt"}
    assert not {operations[name] for name in signs} & {"linear", "mean"}
