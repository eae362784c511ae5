"""Where a compiled model may not be called."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.errors import ModelError

X, Y = torch.randn(8, 3), torch.arange(8) % 2


@pytest.mark.parametrize("ready", [True, False], ids=["called before", "called for the first time"])
@pytest.mark.parametrize("place", ["loss", "forward", "hook"])
def test_a_compiled_model_within_anothers_trace(place, ready):
    """It is refused by name, and leaves everything as it was."""
    teacher, data = hbp.compile(nn.Linear(3, 2), quantities=["grad"]), torch.Tensor.__dict__.get("data")
    if ready:
        teacher(X, Y)

    class Student(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return out + teacher(X, Y).loss if place == "forward" else out

    def loss(output, target):
        found = nn.functional.cross_entropy(output, target)
        return found * teacher(X, Y).loss if place == "loss" else found

    model = Student(3, 2)
    if place == "hook":
        model.register_forward_hook(lambda module, given, output: output + teacher(X, Y).loss)
    compiled = hbp.compile(model, loss, ["grad"])
    with pytest.raises(ModelError, match=r"test_checks.py:\d+: .*teacher\(X, Y\).*: a compiled model is called within"):
        compiled(X, Y)
    assert torch.Tensor.__dict__.get("data") is data
    outside = hbp.compile(nn.Linear(3, 2), lambda o, y: nn.functional.cross_entropy(o, y[0]) * y[1].mean(), ["grad"])
    weight = teacher(X, Y).loss.expand(8)
    expected = torch.autograd.grad(nn.functional.cross_entropy(outside.model(X), Y) * weight[0],
                                   [*outside.model.parameters()])
    torch.testing.assert_close([*outside(X, (Y, weight)).grad.values()], [*expected])
