"""Curvature that may be indefinite is warned of."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.agreement import close
from tests.models.test_modules import draw
from tests.selection import few


def bump(output, target):
    return (1 - (-((output - target) ** 2)).exp()).mean()


@few(2, "further cases of one kind")
@pytest.mark.parametrize("quantity", ["diag_ggn", "diag_ggn_mc", "kflr", "kfac", "kfra"])
def test_an_indefinite_ggn_is_warned_of_once(quantity):
    compiled = hbp.compile(nn.Linear(2, 3).double(), bump, [quantity])
    with pytest.warns(hbp.IndefiniteCurvatureWarning, match=f"bump.*{quantity}") as caught:
        compiled(draw(2, 2), draw(2, 3))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(draw(3, 2), draw(3, 3))


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("loss", "quantity"), [
    (bump, "grad"), (bump, "diag_h"), (nn.MSELoss(), "diag_ggn"), (nn.MSELoss(reduction="sum"), "kflr"),
    (lambda out, y: 0.5 * F.mse_loss(out, y), "kfac"), (lambda out, y: F.mse_loss(out, y) / out.shape[0], "diag_ggn")])
def test_no_warning(loss, quantity):
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(nn.Linear(2, 3).double(), loss, [quantity])(draw(2, 2), draw(2, 3))
    assert result[quantity].keys() == {"weight", "bias"}


@pytest.mark.parametrize("loss", [
    lambda out, y: ((out - y) ** 2).mean(),
    lambda out, y: 0.5 * (out - y).square().sum(1).mean(),
    lambda out, y: (torch.logsumexp(out, 1) - (out * y).sum(1)).mean(),
    lambda out, y: torch.linalg.vector_norm(out - y, dim=1).sum() + out.exp().mean(),
], ids=["squares", "half the sum of squares", "cross entropy", "norm and exponentials"])
def test_a_convex_loss_written_out_does_not_warn(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    X, y = draw(4, 3), draw(4, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", hbp.IndefiniteCurvatureWarning)
        result = hbp.compile(model, loss, quantities=["diag_ggn", "sqrt_ggn"])(X, y)
    for key, value in reference(model, loss, [X], y, "diag_ggn").items():
        close(result.diag_ggn[key], value, key)
        close(result.sqrt_ggn[key].square().sum((0, 1)), value, key)


@pytest.mark.parametrize("loss", [
    lambda out, y: -((out - y) ** 2).mean(),
    lambda out, y: ((out - y) ** 3).mean(),
    lambda out, y: (out.square() * y).mean(),
    lambda out, y: (out.square() - out.exp()).mean(),
    lambda out, y: out.square().square().sub(out.square()).sum(),
], ids=["negative", "cubes", "weighted", "difference", "double well"])
def test_a_loss_that_may_be_indefinite_warns(loss):
    model = nn.Sequential(nn.Linear(3, 2)).double()
    X, y = draw(4, 3), draw(4, 2)
    with pytest.warns(hbp.IndefiniteCurvatureWarning):
        result = hbp.compile(model, loss, quantities=["diag_ggn"])(X, y)
    for key, value in reference(model, loss, [X], y, "diag_ggn").items():
        close(result.diag_ggn[key], value, key)
