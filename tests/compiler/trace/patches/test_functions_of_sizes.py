"""Functions of the batch's size: right for batches of every size, or refused with what to write instead."""

import math
import threading
from math import log

import numpy as np
import pytest
import torch
from torch import nn

import hbpcompiler as hbp
from hbpcompiler.compiler.trace.patches.functions_of_sizes import functions_of_sizes
from hbpcompiler.errors import HbpError
from tests.agreement import agree


class Scaled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2).double(), function

    def forward(self, x):
        return self.layer(x) * self.function(x)


FUNCTIONS = {
    "root": lambda x: 1 / math.sqrt(len(x)),
    "root of a share": lambda x: math.sqrt(2.5 / x.shape[0]),
    "times": lambda x: torch.linspace(0, 1, len(x), dtype=x.dtype).unsqueeze(1),
    "times down": lambda x: torch.linspace(2.0, -1.5, steps=len(x), dtype=x.dtype, device=x.device)[:, None],
    "logarithm of a tensor": lambda x: x.new_full((), len(x)).log(),
}


@pytest.mark.parametrize("place", ["model", "loss"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_batches_of_every_size(function, place):
    torch.manual_seed(0)
    model, loss = Scaled(function if place == "model" else lambda x: 1), nn.MSELoss()
    if place == "loss":
        def loss(output, y):
            return ((output - y) ** 2 * function(output)).mean()
    compiled = hbp.compile(model, loss, ["grad", "diag_h"])
    for samples in (5, 7, 2, 1):
        X, y = torch.randn(samples, 3, dtype=torch.float64), torch.randn(samples, 2, dtype=torch.float64)
        agree(compiled(X, y), model, loss, [X], y)


def test_times_of_the_default_dtype():
    """To its rounding: torch's own goes from both ends."""
    model, loss = Scaled(lambda x: torch.linspace(0, 1, len(x)).unsqueeze(1)).float(), nn.MSELoss()
    compiled = hbp.compile(model, loss, ["grad"])
    for samples in (5, 40):
        X, y = torch.randn(samples, 3), torch.randn(samples, 2)
        (expected,) = torch.autograd.grad(loss(model(X), y), model.layer.weight)
        torch.testing.assert_close(compiled(X, y).grad["layer.weight"], expected)


def test_they_are_themselves_for_all_else():
    plain, seen = math.sqrt, []
    with functions_of_sizes():
        assert math.sqrt(4) == 2
        assert torch.equal(torch.linspace(0, 3, 4), torch.tensor([0.0, 1, 2, 3]))
        assert torch.linspace(0, 3, 4, dtype=torch.int64).tolist() == [0, 1, 2, 3]
        other = threading.Thread(target=lambda: seen.append(math.sqrt(9.0)))
        other.start()
        other.join()
    assert seen == [3]
    assert math.sqrt is plain


OTHERS = {
    "log": lambda x: math.log(len(x)),
    "log of a share": lambda x: math.log(len(x) / 2, 2),
    "exp": lambda x: math.exp(-x.shape[0]),
    "by its own name": lambda x: log(len(x)),
    "numpy": lambda x: float(np.log(len(x))),
    "numpy's range": lambda x: torch.tensor(np.arange(len(x))).unsqueeze(1),
    "logspace": lambda x: torch.logspace(0, 1, len(x)).unsqueeze(1),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_others_are_refused_by_line(function):
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    with pytest.raises(HbpError, match=r"output\.new_full") as caught:
        hbp.compile(Scaled(function), nn.MSELoss(), ["grad"])(X, y)
    assert f"{__file__}:{function.__code__.co_firstlineno}" in str(caught.value)
