"""Functions of libraries that somebody replaces between calls, and Python's own behind a global of that name."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hbpcompiler as hbp
from hbpcompiler.guards.walk import Walk
from tests.selection import few


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


class Threads(Short):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.get_num_threads()


class Precise(Short):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if torch.get_float32_matmul_precision() == "high" else 3)


class Deterministic(Short):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if torch.are_deterministic_algorithms_enabled() else 3)


class Searched(Short):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if torch.backends.cudnn.benchmark else 3)


def use_algorithms(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)


def search(benchmark: bool) -> None:
    torch.backends.cudnn.benchmark = benchmark


@few(2, "further cases of one kind")
@pytest.mark.parametrize(("kind", "turn", "on", "off"), [
    (Threads, torch.set_num_threads, torch.get_num_threads() + 1, torch.get_num_threads()),
    (Precise, torch.set_float32_matmul_precision, "high", "highest"),
    (Deterministic, use_algorithms, True, False), (Searched, search, True, False)])
def test_switches_of_torchs_that_the_code_names(kind: type[Short], turn: Any, on: Any, off: Any) -> None:
    model = kind()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
    assert agrees(compiled, model)
    try:
        turn(on)
        assert agrees(compiled, model)
    finally:
        turn(off)
    assert agrees(compiled, model)
    assert len(compiled._guards) == 2


@few(2, "further cases of one kind")
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


class Printing(Short):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            print("odd", file=sys.stderr)
        return self.layer(x)


def test_what_is_replaced_as_a_matter_of_course_is_not_watched() -> None:
    model = Printing()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
    for _ in range(3):
        with contextlib.redirect_stderr(io.StringIO()):
            assert agrees(compiled, model)
    assert len(compiled._guards) == 1


def test_nothing_of_a_library_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(Short(), nn.MSELoss())
    monkeypatch.setattr(F, "relu", torch.tanh)
    walk.watched.put_back()
    assert F.relu is torch.tanh


def test_modules_that_import_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mutual"
    folder.mkdir()
    (folder / "__init__.py").write_text("SCALE = 2.0\nfrom . import layers\n")
    (folder / "layers.py").write_text("import mutual\n\ndef scaled(x):\n    return mutual.SCALE * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mutual = importlib.import_module("mutual")

    class Mutual(Short):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(mutual.layers.scaled(x))

    model = Mutual()
    compiled = hbp.compile(model, nn.MSELoss(), quantities=["grad"])
    assert agrees(compiled, model)
    mutual.SCALE = 3.0
    assert agrees(compiled, model)
