"""Derivatives that are lost at an infinite slope, where torch's gradient is finite: an error, and no NaN."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.match.steep import is_steep
from hbpcompiler.lost import refuse_lost
from hbpcompiler.reference import reference

pytestmark = pytest.mark.filterwarnings("ignore::hbpcompiler.errors.IndefiniteCurvatureWarning")
X, Y = torch.randn(6, 3, dtype=torch.float64), torch.rand(6, 2, dtype=torch.float64)


class Positive(nn.Module):
    """Outputs of exactly 0, behind which no derivative passes; of X = 0 there are none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        nn.init.constant_(self.layer.bias, 0.5)

    def forward(self, x):
        return torch.relu(3 * self.layer(x))


LOSSES = {
    "kl_div": lambda o, y: F.kl_div(y.log_softmax(1), o, reduction="batchmean"),
    "xlogy": lambda o, y: torch.xlogy(o, o).mean() + (o * y).mean(),
}


def model_of():
    torch.manual_seed(0)
    model = Positive().double()
    assert bool((model(X) == 0).any())
    return model


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_curvature_that_is_lost_is_an_error(name, verify):
    model, loss = model_of(), LOSSES[name]
    compiled = hbp.compile(model, loss, quantities=["grad", "diag_h"], verify=verify)
    for x in (0 * X, X, 0 * X):
        if x is X:
            with pytest.raises(hbp.errors.InputError, match=r"of 'layer.weight' is not a number.*clamp"):
                compiled(x, Y)
            continue
        found = compiled(x, Y)
        for quantity in ("grad", "diag_h"):
            for key, expected in reference(model, loss, (x,), Y, quantity).items():
                torch.testing.assert_close(found[quantity][key], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_that_is_lost_in_a_later_batch_is_an_error(name):
    compiled = hbp.compile(model_of(), LOSSES[name], quantities=["grad"])
    compiled(0 * X, Y)
    with pytest.raises(hbp.errors.InputError, match=r"grad of 'layer.weight' is not a number"):
        compiled(X, Y)
    with pytest.raises(hbp.errors.ProofError, match="infinite slope"):
        hbp.compile(model_of(), LOSSES[name], quantities=["grad"])(X, Y)


def test_which_models_are_asked():
    def of(loss):
        compiled = hbp.compile(Positive(), loss, quantities=["diag_ggn"], example_inputs=(X.float() * 0, Y.float()))
        return is_steep(compiled._current().matched)

    assert of(LOSSES["kl_div"])
    assert of(lambda o, y: (o + 1e-3).sqrt().mean())
    assert not of(nn.MSELoss())
    assert not of(nn.CrossEntropyLoss())


def test_where_the_gradient_is_lost_too_nothing_is_said():
    raw = SimpleNamespace(diag_h={"w": torch.tensor([float("nan")])}, grad={"w": torch.tensor([1.0])})
    refuse_lost(raw, ("grad", "diag_h"), lambda: {"w": torch.tensor([float("inf")])})
    refuse_lost(raw, ("grad",), lambda: {"w": torch.tensor([1.0])})
    with pytest.raises(hbp.errors.InputError, match="diag_h of 'w'"):
        refuse_lost(raw, ("grad", "diag_h"), lambda: {"w": torch.tensor([1.0])})
