"""Parameters in plain lists: refused where they are read from there, and where else they may lie."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.refusals.listed import listed
from hbpcompiler.errors import ModelError


class InAList(nn.Module):
    """Its weight is the layer's own, and in a plain container."""

    def __init__(self, keep, read):
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
        self.again, self.read = keep(self.layer.weight), read

    def forward(self, x):
        return self.layer(x).sin() + nn.functional.linear(x, self.read(self))


def run(model, verify=False):
    X, y = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    result = hbp.compile(model, quantities=["grad"], verify=verify)(X, y)
    expected = torch.autograd.grad(nn.CrossEntropyLoss()(model(X), y), [*model.parameters()])
    torch.testing.assert_close([*result.grad.values()], [*expected])


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("keep", "key"), [(lambda w: [w], 0), (lambda w: {"w": (w, 2)}, "w")])
def test_a_use_from_there_is_refused(keep, key, verify):
    model = InAList(keep, lambda model: model.again[key][0] if key == "w" else model.again[key])
    with pytest.raises(ModelError, match=r"'layer\.weight', out of (list|dict) 'again' of module '' \(InAList\)"):
        run(model, verify)


@pytest.mark.parametrize(("keep", "read"), [
    (lambda w: [w], lambda model: model.layer.weight),
    (lambda w: [w.detach()], lambda model: model.again[0]),
    (lambda w: nn.ParameterList([w]), lambda model: model.again[0]),
])
def test_what_is_none(keep, read):
    """A list that forward does not read, a constant, and a list that torch knows."""
    run(InAList(keep, read))


def test_where_it_lies():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].kept = {"all": [model[0].bias, torch.ones(1)], "none": 3}
    assert listed(model) == [("0.bias", "'0.bias', out of dict 'kept' of module '0' (Linear)")]
