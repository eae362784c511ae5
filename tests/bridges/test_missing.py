"""What bridges say where the other library is not installed."""

import importlib
import sys

import pytest


def test_laplace(monkeypatch):
    monkeypatch.setitem(sys.modules, "laplace", None)
    for name in [name for name in sys.modules if name.startswith("laplace.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "hbpcompiler.bridges.laplace", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs laplace-torch, .*: pip install laplace-torch==0.3 "):
        importlib.import_module("hbpcompiler.bridges.laplace")
