"""What names in the source stand for, found without running anything of the user's."""

import ast
import contextlib
import sys
import warnings

import pytest
import torch
from torch import nn

from hbpcompiler.compiler.trace.source.called import UNKNOWN, found, lets_through


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.block = nn.Linear(2, 2), torch.no_grad()

    @property
    def asked(self):
        raise AssertionError

    def __getattr__(self, name):
        assert name != "other"
        return super().__getattr__(name)


class Swallows(torch.no_grad):
    def __exit__(self, *error):
        return True


@contextlib.contextmanager
def written():
    yield


def expression(text):
    return ast.parse(text, mode="eval").body


def test_nothing_is_called():
    held = Held()
    here = sys._getframe()
    assert found(expression("held.layer.weight"), here) is held.layer.weight
    assert found(expression("print"), here) is print
    for text in ("held.asked", "held.other", "held().layer", "nowhere", "held.layer.nothing"):
        assert found(expression(text), here) is UNKNOWN


@pytest.mark.parametrize(("text", "lets"), [
    ("torch.no_grad()", True), ("held.block", True), ("torch.autocast('cpu')", True), ("torch.random.fork_rng()", True),
    ("warnings.catch_warnings()", True), ("contextlib.nullcontext()", True), ("Swallows()", False), ("nowhere", False),
    ("written()", False), ("contextlib.suppress(ValueError)", False), ("contextlib.ExitStack()", False),
])
def test_what_lets_exceptions_through(text, lets):
    held = Held()
    assert held.block is not None
    assert warnings
    assert lets_through(expression(text), sys._getframe()) == lets
