"""Variances that torch's Gaussian loss clamps: differentiated as what they are, on later batches too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import gaussian_nll_loss

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.patches.variances import variances_clamped_in_sight
from hbpcompiler.reference import reference

EPS = 0.5


def by_module(place, target, variance):
    return nn.GaussianNLLLoss(eps=EPS, full=True)(place, target, variance)


def by_name(place, target, variance):
    return gaussian_nll_loss(place, target, variance, eps=EPS)


def of_each(place, target, variance):
    return F.gaussian_nll_loss(place, target, variance, eps=EPS, reduction="none").square().mean()


@pytest.mark.parametrize("loss", [by_module, by_name, of_each])
def test_their_gradient_passes(loss):
    def of_output(output, target):
        return loss(output[:, :2], target, F.softplus(output[:, 2:]))

    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    X, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    with torch.no_grad():
        model.bias[2:] = 9.0  # no variance is small in the first batch
    compiled = hbp.compile(model, of_output, quantities=["grad", "diag_h"])
    compiled(X, y)
    with torch.no_grad():
        model.bias[2:] = -0.5
    result = compiled(X, y)
    torch.testing.assert_close(result.grad["bias"], torch.autograd.grad(of_output(model(X), y), model.bias)[0])
    torch.testing.assert_close(result.diag_h["bias"], reference(model, of_output, (X,), y, "diag_h")["bias"])
    assert F.softplus(model(X)[:, 2:]).lt(EPS).any()


def test_a_function_is_torchs_again_afterwards():
    before = F.gaussian_nll_loss.__code__
    place, target, variance = torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 4)
    with variances_clamped_in_sight():
        seen = gaussian_nll_loss(place, target, variance, eps=EPS)
    assert F.gaussian_nll_loss.__code__ is before
    torch.testing.assert_close(seen, gaussian_nll_loss(place, target, variance, eps=EPS))
