"""Functions of libraries that somebody replaces between calls, and Python's own behind a global of that name."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp


class Short(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x)) * math.pi * abs(-2.0)


class Long(Short):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.relu(self.layer(x))


class Whole(Short):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


def agrees(compiled: hbp.Compiled, model: nn.Module) -> bool:
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    loss = nn.functional.mse_loss(model(X), y)
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    found = compiled(X, y).grad.values()
    return all(torch.allclose(each, other) for each, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("kind", "holder", "name", "other"), [
    (Short, F, "relu", torch.tanh), (Long, F, "relu", torch.tanh), (Whole, torch, "tanh", torch.sigmoid),
    (Short, math, "pi", 3.0)])
def test_replaced(kind: type[Short], holder: object, name: str, other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kind()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
    assert agrees(compiled, model)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, other)
        assert agrees(compiled, model)
    assert agrees(compiled, model)
    assert len(compiled._guards) == 2


def test_shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Short()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
    assert agrees(compiled, model)
    monkeypatch.setitem(globals(), "abs", lambda number: 5.0)
    assert agrees(compiled, model)
