"""What code looks for in vain at the trace, and finds at a later call."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hbpcompiler as hbp

Scale = Callable[[], float]


def tried() -> float:
    try:
        return GIVEN_LATER  # type: ignore[name-defined, no-any-return]  # that is what is tried
    except NameError:
        return 1.0


def listed() -> float:
    found: float = globals().get("GIVEN_LATER", 1.0)
    return found


def own_attribute() -> float:
    found: float = getattr(own_attribute, "scale", 1.0)
    return found


def _in_module(module: types.ModuleType) -> dict[str, Scale]:
    def tried_attribute() -> float:
        try:
            return module.scale  # type: ignore[no-any-return]
        except AttributeError:
            return 1.0

    return {"getattr": lambda: getattr(module, "scale", 1.0), "vars": lambda: vars(module).get("scale", 1.0),
            "hasattr": lambda: module.scale if hasattr(module, "scale") else 1.0, "tried": tried_attribute}


def _variable() -> tuple[Scale, Callable[[float | None], None]]:
    def scale() -> float:
        try:
            return value
        except NameError:
            return 1.0

    def change(other: float | None) -> None:
        nonlocal value
        if other is None:
            del value
        else:
            value = other

    if False:
        value = 1.0
    return scale, change


class Scaled(nn.Module):
    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), scale

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) * self.scale()
        return found


def _check(scale: Scale, change: Callable[[float | None], None]) -> None:
    """Right before, after and between changes; the trace itself leaves nothing behind."""
    torch.manual_seed(0)
    model, X, y = Scaled(scale).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    compiled = hbp.compile(model, quantities=["grad"])
    for value in (None, 2.0, 3.0, None):
        if value is not None or scale() != 1.0:
            change(value)
        assert scale() == (value or 1.0)
        wanted = torch.autograd.grad(nn.functional.cross_entropy(model(X), y), model.layer.weight)[0]
        torch.testing.assert_close(compiled(X, y).grad["layer.weight"], wanted, rtol=1e-10, atol=0)


def _attribute(held: Any, name: str) -> Callable[[float | None], None]:
    return lambda value: delattr(held, name) if value is None else setattr(held, name, value)


@pytest.mark.parametrize("scale", [tried, listed])
def test_globals(scale: Scale) -> None:
    _check(scale, _attribute(sys.modules[__name__], "GIVEN_LATER"))


def test_attributes_of_functions() -> None:
    _check(own_attribute, _attribute(own_attribute, "scale"))


def test_variables_around() -> None:
    _check(*_variable())


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    (tmp_path / "settings_of_mine.py").write_text("other = 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import settings_of_mine  # type: ignore[import-not-found]

    yield settings_of_mine
    del sys.modules["settings_of_mine"]


@pytest.mark.parametrize("way", ["getattr", "vars", "hasattr", "tried"])
def test_attributes_of_modules(settings: types.ModuleType, way: str) -> None:
    _check(_in_module(settings)[way], _attribute(settings, "scale"))


def remembered() -> float:
    global MADE_BY_FORWARD
    try:
        return MADE_BY_FORWARD
    except NameError:
        MADE_BY_FORWARD = 1.0
        return MADE_BY_FORWARD


def test_what_a_trace_makes_is_gone_again() -> None:
    torch.manual_seed(0)
    hbp.compile(Scaled(remembered), quantities=["grad"])(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    assert "MADE_BY_FORWARD" not in globals()


def test_what_is_put_among_pythons_own_names() -> None:
    _check(tried, _attribute(builtins, "GIVEN_LATER"))


def test_an_entry_in_the_place_of_what_a_module_answers() -> None:
    """It answers for any name, as __file__."""
    module: Any = types.ModuleType("answers")
    module.__getattr__ = lambda name: 1.0
    _check(lambda: float(module.scale), _attribute(module, "scale"))
