"""Many conditions as few functions: a text with the objects that it names.

A call asks them in the midst of the kernels' own work, when little of what loops of library functions need is in the
processor's caches; written out, they take half the time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

PIECE = 100
"""Conditions of one function. A function's text is the same for states of one form, and is compiled once."""


class Conditions:
    """Texts that name objects, any of which may come true: `when(f"len({named(held)}) != 3")`."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        self._texts: dict[str, None] = {}

    def named(self, item: Any) -> str:
        """The name of an object in texts."""
        name = self._names.setdefault(id(item), f"object_{len(self._names)}")
        self._objects[name] = item  # which keeps its id from another
        return name

    def when(self, text: str) -> None:
        """One more, if it is not among them."""
        self._texts[text] = None

    def written(self) -> list[Callable[[], bool]]:
        """Functions, of which one is true where a condition is. What a condition raises is raised."""
        texts = [f"({text})" for text in self._texts]
        pieces = [" or ".join(texts[start : start + PIECE]) for start in range(0, len(texts), PIECE)]
        # A copy of the code: what Python learns of where the names lie is kept with it.
        return [FunctionType(_code(f"lambda: {piece}").replace(), self._objects) for piece in pieces]


@functools.lru_cache(1000)
def _code(text: str) -> CodeType:
    """That of a function without arguments."""
    function: CodeType = compile(text, "<what a call compares>", "eval").co_consts[0]
    return function
