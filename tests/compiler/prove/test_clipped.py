"""What verify="full" says of clipped gradients: a loop over samples finds a program that weighs them wrongly."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler import clipping
from hbpcompiler.compiler.prove import clipped


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize("style", clipping.STYLES)
def test_the_loop_agrees(style):
    model, X, y = setting()
    compiled = hbp.compile(model, quantities=["clipped_grad"], clipping=style, verify="full")
    compiled(X, y, max_norm=0.4)
    lines = [line for line in compiled.verify(X, y, max_norm=0.4) if line.quantity in clipped.NAMES]
    assert {line.quantity for line in lines} == {clipped.CLIPPED, clipped.NORMS}
    assert all(line.compared and line.agrees and line.how == "two samples" for line in lines)
    assert len(lines) == (8 if style == "per_parameter" else 5)


@pytest.mark.parametrize("style", clipping.STYLES)
def test_a_wrong_weight_is_found(style, monkeypatch):
    right = clipping.weights
    monkeypatch.setattr(clipping, "weights", lambda *given: right(*given) * 1.001)
    model, X, y = setting()
    with pytest.raises(hbp.ProofError, match="clipped_grad"):
        hbp.compile(model, quantities=["clipped_grad"], clipping=style, verify="full")(X, y, max_norm=0.4)


def test_norms_alone():
    model, X, y = setting()
    found = hbp.compile(model, quantities=["norms"], verify="full").verify(X, y)
    assert [line.agrees for line in found if line.quantity == clipped.NORMS] == [True]
