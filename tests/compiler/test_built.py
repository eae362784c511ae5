"""Programs that are loaded: what a backend has no form of is said with its line."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp


def test_what_torchscript_has_no_form_of_is_named():
    """A number over whole numbers of a target: Python's own has it."""
    def loss(output, target):
        return (output.square() * (7 // target)).mean()

    torch.manual_seed(0)
    model, X = nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    y = torch.randint(1, 5, (4, 2))
    with pytest.raises(hbp.UnsupportedOpError, match=r"TorchScript has no form of .*\(7, y\).*program_\w+\.py:\d+\)"):
        hbp.compile(model, loss, quantities=["grad"], backend="torchscript")(X, y)
    result = hbp.compile(model, loss, quantities=["grad"])(X, y)
    expected = torch.autograd.grad(loss(model(X), y), model.weight)[0]
    torch.testing.assert_close(result.grad["weight"], expected)
