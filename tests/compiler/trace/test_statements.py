"""What the source says about the place that a frame executes."""

import contextlib
import linecache
import sys
import warnings

import pytest

from hbpcompiler.compiler.trace.statements import only_checks

CHECKS = [
    "assert ask()",
    "assert not ask(), 'wrong'",
    "if ask(): raise ValueError",
    "if not ask():\n    pass\nelse:\n    print('large')\n    raise ValueError",
    "if 3 > 5 or not ask():\n    warnings.warn('large')",
    "print(ask())",
    "def yes():\n    return not ask()\nif yes(): raise ValueError",
    "try:\n    raise KeyError\nexcept KeyError:\n    assert ask()",
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
]


def found(text):
    """What `only_checks` says of the frame that calls ask() in this text."""
    name, answers = f"<{text}>", []

    def ask():
        answers.append(only_checks(sys._getframe(1), __file__))
        return True

    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    with contextlib.suppress(ValueError, AssertionError):
        exec(compile(text, name, "exec"), {"ask": ask, "warnings": warnings})
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
