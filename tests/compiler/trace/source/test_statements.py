"""What the source says about the place that a frame executes."""

import contextlib
import linecache
import logging
import math
import sys
import warnings

import pytest
import torch

from hbpcompiler.compiler.trace.source.statements import only_checks

MODULES = {"warnings": warnings, "torch": torch, "contextlib": contextlib, "logging": logging, "math": math,
           "log": logging.getLogger("checks")}
CHECKS = [
    "assert ask()",
    "assert not ask(), 'wrong'",
    "if ask(): raise ValueError",
    "if not ask():\n    pass\nelse:\n    print('large')\n    raise ValueError",
    "if 3 > 5 or not ask():\n    warnings.warn('large')",
    "print(ask())",
    "def yes():\n    return not ask()\nif yes(): raise ValueError",
    "try:\n    raise KeyError\nexcept KeyError:\n    assert ask()",
    "try:\n    assert ask()\nfinally:\n    value = 3",
    "with torch.no_grad(), warnings.catch_warnings():\n    assert ask()",
    "with torch.no_grad() if 3 > 5 else contextlib.nullcontext():\n    assert ask()",
    "block = torch.autocast('cpu')\nwith block:\n    assert ask()",
    "if not ask():\n    pass\nelse:\n    logging.debug('%s', 'a'.join('b'))\n    raise ValueError",
    "if ask(): log.info(f'{len([3])} {x.abs().max().item():.2f}')",
    "assert all(ask() for _ in range(1))",
    "assert math.isfinite(float(ask()))",
]
OTHERS = [
    "value = ask()",
    "if ask():\n    value = 3",
    "if ask():\n    pass",
    "if ask():\n    print()\nelse:\n    value = 3",
    "if (value := ask()): raise ValueError",
    "if 3 > 5: raise ValueError\nelif ask(): value = 3",
    "value = 3 if ask() else 4",
    "while not ask(): raise ValueError",
    "try:\n    assert ask()\nexcept ValueError:\n    pass",
    "def check():\n    assert ask()\ntry:\n    check()\nexcept ValueError:\n    pass",
    "for _ in range(int(ask())): print()",
    "try:\n    assert ask()\nexcept* ValueError:\n    pass",
    "for _ in range(1):\n    try:\n        assert ask()\n    finally:\n        break",
    "with contextlib.suppress(ValueError):\n    assert ask()",
    "with torch.no_grad(), contextlib.suppress(ValueError):\n    if ask(): raise ValueError",
    "def check():\n    assert ask()\nwith contextlib.suppress(ValueError):\n    check()",
    "@contextlib.contextmanager\ndef block():\n    yield\nwith block():\n    assert ask()",
    "def error(): pass\nif ask(): error()",
    "class A:\n    def warning(self): pass\nif ask(): A().warning()",
    "class A:\n    def warning(self): pass\nself = A()\nif ask(): self.warning()",
    "def print(text): pass\nif ask(): print('large')",
    "def change(): pass\nif ask(): print(change())",
    "if ask(): print(x.mul_(2))",
    "def keep(value): return value\nassert keep(ask())",
    "def keep(value): return value\nprint(keep(ask()))",
    "def keep(value): return value\ndef yes(): return keep(ask())\nif yes(): raise ValueError",
]


def found(text):
    """What `only_checks` says of the frame that calls ask() in this text."""
    name, answers = f"<{text}>", []

    def ask():
        answers.append(only_checks(sys._getframe(1), __file__))
        return True

    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    with contextlib.suppress(ValueError, AssertionError):
        exec(compile(text, name, "exec"), {**MODULES, "ask": ask, "x": torch.ones(2)})
    return answers


@pytest.mark.parametrize("text", CHECKS)
def test_checks(text):
    assert found(text) == [True]


@pytest.mark.parametrize("text", OTHERS)
def test_values_that_decide_more(text):
    assert found(text) == [False]


def test_code_without_source():
    answers = []
    exec("assert ask()", {"ask": lambda: answers.append(only_checks(sys._getframe(1), __file__)) or True})
    assert answers == [False]
