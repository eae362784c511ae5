"""Losses that end in minus a mean or a sum of concave functions are known to be convex; minus convex ones are not."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

import hbpcompiler as hbp
from hbpcompiler.reference import kflr, reference
from tests.agreement import agree, close

D = torch.float64
CONVEX = {
    "logsigmoid": lambda o, y: -F.logsigmoid(o).mean(),
    "logsigmoid, summed": lambda o, y: -2 * F.logsigmoid(-o).sum() / len(o),
    "gathered": lambda o, y: -o.log_softmax(1).gather(1, y[:, None]).mean(),
    "one hot": lambda o, y: -(F.one_hot(y, 3) * o.log_softmax(1)).sum(1).mean(),
    "teacher": lambda o, y: -(F.one_hot(y, 3).to(D).softmax(1) * o.log_softmax(1)).sum(1).mean(),
    "weights": lambda o, y: -(y.abs() * o.log_softmax(1)[:, 0]).sum(),
    "Categorical": lambda o, y: -Categorical(logits=o).log_prob(y).mean(),
    "Normal": lambda o, y: -Normal(o, 0.7).log_prob(y[:, None].to(D).expand_as(o)).mean(),
    "squares": lambda o, y: -(-(o - y[:, None]) ** 2).sum() / len(o),
    "two parts": lambda o, y: o.logsumexp(1).mean() - o[torch.arange(len(o)), y].mean() - F.logsigmoid(o).mean(),
}
NOT = {
    "logsigmoid": lambda o, y: F.logsigmoid(o).mean(), "cross entropy": lambda o, y: -F.cross_entropy(o, y),
    "squares": lambda o, y: -((o - y[:, None]) ** 2).mean(), "softplus": lambda o, y: -F.softplus(o).sum(),
    "signed weights": lambda o, y: -((y[:, None] - 1) * o.log_softmax(1)).mean(),
    "log_softmax": lambda o, y: o.log_softmax(1).mean(), "logsumexp": lambda o, y: -o.logsumexp(1).mean(),
    "squared log": lambda o, y: -(o.log_softmax(1) ** 2).mean(), "sigmoid": lambda o, y: -torch.sigmoid(o).mean(),
    "unknown multiple": lambda o, y: (y.to(D) - 1).sum() * F.logsigmoid(o).mean(),
    "one part of two": lambda o, y: -F.logsigmoid(o).mean() - (o**2).mean(),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)


def batch():
    return torch.randn(6, 4, dtype=D), torch.tensor([0, 1, 2, 1, 1, 0])


@pytest.mark.parametrize("name", CONVEX)
def test_they_are_known_to_be_convex(name):
    model, loss, (X, y) = network(), CONVEX[name], batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = hbp.compile(model, loss, ["grad", "diag_ggn", "diag_h", "trace_ggn", "kflr", "sqrt_ggn"])(X, y)
    agree(result, model, loss, [X], y, ["grad", "diag_ggn", "diag_h", "trace_ggn"])
    expected, factors = reference(model, loss, (X,), y, "diag_ggn"), kflr(model, loss, (X,), y)
    for parameter, columns in result.sqrt_ggn.items():
        shape = expected[parameter].shape
        close(columns.reshape(-1, *shape).square().sum(0), expected[parameter], f"columns of {parameter}")
        close(result.kflr[parameter].B, factors[parameter][1], f"factor B of {parameter}")


@pytest.mark.parametrize("name", NOT)
def test_these_are_not(name):
    model, loss, (X, y) = network(), NOT[name], batch()
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        result = hbp.compile(model, loss, ["grad", "diag_ggn"])(X, y)
    agree(result, model, loss, [X], y, ["grad", "diag_ggn"])
    with pytest.raises(hbp.CompileError):
        hbp.compile(model, loss, ["sqrt_ggn"])(X, y)
