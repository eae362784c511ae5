"""What a number in a call is, for functions that are given it: a loop takes a chunk, new_zeros rows and columns."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from hbpcompiler.codegen.naming import Names

CHUNK = "chunk"
"""How many samples or columns a loop's turn takes."""
LENGTH = "length"
"""In an expression that is a shape or a number."""
SIZE, OF_MATRIX = "size", ("rows", "columns")


def argument_names(node: fx.Node) -> Sequence[str]:
    """What the arguments of a node's call are called that it is given by position; "" where that is not known."""
    if node.op == "call_method":
        names = _of_operator(str(node.target))
    elif isinstance(node.target, torch._ops.OpOverload):
        names = tuple(argument.name for argument in node.target._schema.arguments)
    else:
        names = _of_function(node.target)
    return [*names, *[""] * (len(node.args) - len(names))]


def part_of(name: str, position: int, parts: int) -> str:
    """What a number in a list is."""
    return OF_MATRIX[position] if name == SIZE and parts == len(OF_MATRIX) else name


@lru_cache(maxsize=512)
def _of_function(function: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return _of_operator(getattr(function, "__name__", ""))


@lru_cache(maxsize=512)
def _of_operator(name: str) -> tuple[str, ...]:
    """Of the first of torch's operators with this name: they differ in types, not in what the arguments are."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None or not hasattr(packet, "overloads"):
        return ()
    first = getattr(packet, packet.overloads()[0])
    return tuple(argument.name for argument in first._schema.arguments)


class Called:
    """Names for numbers that differ, each once: words for what code reads, letters for the rest."""

    def __init__(self, letters: str) -> None:
        self.names, self.letters, self.given = Names(), letters, 0

    def name(self, wish: str) -> str:
        if wish:
            return self.names.fresh(wish)
        self.given += 1
        return self.letters[self.given - 1] if self.given <= len(self.letters) else f"a{self.given - 1}"
