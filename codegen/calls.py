"""Functions that alike parts of a program share, and the calls that stand in the place of these parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from hbpcompiler.codegen.places import passed
from hbpcompiler.compiler.program.meta import Block


@dataclass
class Function:
    """A class of alike parts: the graph of one, with a placeholder for each input."""

    graph: fx.Graph
    block: Block
    letters: list[str]
    """of the numbers that are arguments."""
    members: int
    sizes: dict[str, int] = field(default_factory=dict)
    """The largest of the numbers that each letter stands for, in shapes too."""
    values: list[fx.Node] = field(default_factory=list)
    """nodes of `graph` that are returned."""
    of_module: bool = False
    outline: Outline = field(default_factory=lambda: Outline())
    """What `graph` calls: a module's function calls those of its operations."""
    entries: dict[fx.Node, tuple[str, str]] = field(default_factory=dict)
    """Nodes of `graph` that stand in tables: the table, and the key behind the module's path."""

    @property
    def tables(self) -> list[str]:
        """What it is given to reach the tables that it reads or fills."""
        return passed(table for table, _ in self.entries.values())


@dataclass
class Call:
    """A part in its place: which function, on what, for what."""

    function: Function
    inputs: list[fx.Node]
    numbers: list[Any]
    """An int each; in a module's function some are the function's own arguments."""
    values: list[fx.Node]
    path: str
    """of the module, as code."""
    block: Block | None = None
    """The heading that it stands under, if not its nodes' own."""


@dataclass
class Outline:
    """The calls by the last node of their part, and all nodes that are inside a function."""

    calls: dict[fx.Node, Call] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)
