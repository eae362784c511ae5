"""Where a value is NaN the gradient is torch's: NaN with it, or what passes because NaN is beyond no limit."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.reference import reference
from tests.networks import Shifted

NAN, INF = math.nan, math.inf
ROWS = {"nan": [NAN, 0.3, 0.6], "outside": [6.0, -3.0, 0.5], "infinite": [INF, -INF, 0.5]}


ZEROS = torch.zeros(3, dtype=torch.float64)
FUNCTIONS = {
    "logit": torch.logit,
    "logit with limits": lambda z: torch.logit(z, eps=1e-3),
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": lambda z: F.hardtanh(z, -0.4, 0.7),
    "leaky_relu": F.leaky_relu,
    "threshold": lambda z: F.threshold(z, 0.1, -1.0),
    "clamp": lambda z: z.clamp(-0.5, 0.5),
    "maximum": lambda z: torch.maximum(z, ZEROS),
    "minimum": lambda z: torch.minimum(ZEROS, z),
    "copysign": lambda z: torch.copysign(z, ZEROS + 1),
    "log": torch.log,
    "relu squared": lambda z: z.relu() ** 2,
    "relu6 in a gate": lambda z: z * F.relu6(z + 3) / 6,
    "tanh of hardtanh": lambda z: F.hardtanh(z, -0.4, 0.7).tanh(),
    "logit of a sigmoid": lambda z: z.sigmoid().logit(),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("quantities", [["grad"], ["grad", "diag_h", "diag_ggn"]], ids=["alone", "beside curvature"])
def test_the_gradient_is_torchs(function, row, quantities):
    model, X = Shifted(function), torch.tensor([row, row], dtype=torch.float64)
    compiled = hbp.compile(model, lambda o, _: o.sum(), quantities)
    compiled(torch.rand(2, 3, dtype=torch.float64) / 2 + 0.1, None)
    (expected,) = torch.autograd.grad(model(X).sum(), model.bias)
    torch.testing.assert_close(compiled(X, None).grad["bias"], expected, equal_nan=True)


@pytest.mark.parametrize("eps", [None, 0.1])
def test_logit(eps):
    torch.manual_seed(0)
    model, loss = nn.Sequential(Shifted(lambda z: torch.logit(z, eps)), nn.Linear(3, 1)).double(), nn.MSELoss()
    X, y = torch.rand(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    found = hbp.compile(model, loss, ["diag_ggn"] if eps else ["diag_ggn", "diag_h"])(X, y)
    for name in found:
        expected = reference(model, loss, (X,), y, name)["0.bias"]
        torch.testing.assert_close(found[name]["0.bias"], expected, rtol=1e-10, atol=1e-12)
