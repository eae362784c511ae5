"""Names for what is computed: equal ones of what computes the same of the same, in all graphs that are compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.conditions.ways import Asked

Form = Any
"""(EMPTY, shape), (FALSE, shape), (ZERO, shape, type), (ONE, shape, type), or the name of an operation on forms."""
EMPTY, FALSE, ZERO, ONE = "empty", "false", "zero", "one"


class Numbers:
    """Of what computes the same of the same, in all graphs that are compared."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def of(self, key: Any) -> str:
        """No number that a graph may have as an argument."""
        return f"#{self._known.setdefault(key, len(self._known))}"


@dataclass(frozen=True)
class Known:
    """Masks of which it is known what they are: nodes of a graph, or what they would be otherwise."""

    false: Collection[Any] = ()
    true: Collection[Any] = ()

    @classmethod
    def of(cls, asked: Iterable[Asked | None]) -> Known:
        """Where none of these picks rows."""
        found = [each for each in asked if each is not None]
        return cls({each.mask for each in found if not each.inverted}, {each.mask for each in found if each.inverted})


NOTHING = Known()
BATCH_SIZE = sympy.Symbol("N", integer=True, positive=True)
"""For all symbols that a trace has for it, an input's own each: the only length that a trace leaves open."""


class Lengths:
    """Of what only values say: how many rows are picked, what .item() makes."""

    def __init__(self) -> None:
        self._names: dict[Any, Any] = {}
        """By symbol: 0, or a symbol named by what makes it, which graphs have in common."""
        self.makers: dict[Any, Node] = {}
        """By symbol: what it counts, or is made of."""

    def new_of(self, node: Node) -> Sequence[Any]:
        """Symbols that nothing before this node has."""
        found = [symbol for value in pytree.tree_leaves(node.meta.get("val"))
                 for symbol in sorted(free_unbacked_symbols(value), key=str) if symbol not in self._names]
        return list(dict.fromkeys(found))

    def enter(self, symbols: Sequence[Any], maker: Node, form: Form, is_zero: bool) -> None:
        """Symbols that an operation of this form makes of `maker`."""
        for place, symbol in enumerate(symbols):
            self._names[symbol] = 0 if is_zero else sympy.Symbol(f"number_{place}_of_{form}", integer=True)
            self.makers[symbol] = maker

    def written(self, number: torch.SymInt) -> int | str:
        """A length, or a number that .item() makes."""
        found = number.node.expr.subs(self._names)
        found = found.subs(dict.fromkeys(found.free_symbols - {*self._names.values()}, BATCH_SIZE))
        return int(found) if found.is_Integer else str(found)
