"""A mode of torch's functions belongs to the state: a program that it changes otherwise than the model is refused."""

import pytest
import torch
from torch import nn

import hbpcompiler as hbp

DTYPE = torch.float64


class Doubling(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 2 if function is torch.tanh else result


class Counting(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(DTYPE)


def batch():
    return torch.randn(6, 4, dtype=DTYPE), torch.arange(6) % 3


def agrees(model, result, x, y):
    value = nn.functional.cross_entropy(model(x), y)
    torch.testing.assert_close(result.loss, value.detach(), rtol=1e-10, atol=0)
    right = torch.autograd.grad(value, model[0].weight)[0]
    torch.testing.assert_close(result.grad["0.weight"], right, rtol=1e-10, atol=1e-12)


def test_a_mode_that_changes_numbers():
    model, (x, y) = network(), batch()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])
    compiled(x, y)
    with Doubling(), pytest.raises(hbp.ProofError, match="Doubling, a TorchFunctionMode in force"):
        compiled(x, y)
    agrees(model, compiled(x, y), x, y)


def test_a_mode_that_looks_on():
    model, (x, y) = network(), batch()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])
    for _ in range(2):
        with Counting() as counting:
            agrees(model, compiled(x, y), x, y)
        assert counting.calls
    agrees(model, compiled(x, y), x, y)
    assert "programs=2" in repr(compiled)


def test_a_device_of_torchs_own_is_no_such_mode():
    model, (x, y) = network(), batch()
    compiled = hbp.compile(model, nn.CrossEntropyLoss(), ["grad"])
    compiled(x, y)
    with torch.device("cpu"):
        agrees(model, compiled(x, y), x, y)
    assert "programs=1" in repr(compiled)
