"""Where a mask is true, as torch.nonzero and torch.where say it, and how often."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from hbpcompiler.compiler.trace.rows import NotWholeError, shape_of
from hbpcompiler.rules.shared.torch_operations import COLUMN


@dataclass(frozen=True)
class Places:
    """The places where a mask is true: the table of them, or one of its columns."""

    mask: Node
    column: int | None = None


@dataclass(frozen=True)
class Count:
    """How many rows there are, or a number made of that: a tensor."""

    number: Node
    is_length: bool = False


@dataclass(frozen=True)
class InOrder:
    """0, 1, 2, ..., as many as there are rows."""


def column_of(table: Places, node: Node) -> Places:
    """What an operation on the table is: one of its columns, or the only one in any form. Raises NotWholeError."""
    axes = len(shape_of(table.mask))
    arguments: Any = node.args
    if table.column is not None:
        raise NotWholeError
    if node.target is operator.getitem:
        return replace(table, column=arguments[1])
    if node.target is COLUMN and arguments[1] in (1, -1):
        return replace(table, column=arguments[2] % axes)
    if axes != 1 or len(shape_of(node)) != 1:
        raise NotWholeError
    return replace(table, column=0)


def mask_of(chosen: Sequence[Any], numbers: Mapping[Node, int]) -> Node:
    """The mask that an index is, or whose places it is, a column for each axis. `numbers` are the same for masks that
    are the same. Raises NotWholeError."""
    first = chosen[0]
    mask = first.mask if isinstance(first, Places) else first
    if not isinstance(mask, Node) or mask.meta["val"].dtype is not torch.bool:
        raise NotWholeError
    if first is mask:
        if len(chosen) > 1:
            raise NotWholeError
        return mask
    if len(chosen) != len(shape_of(mask)):
        raise NotWholeError
    for number, part in enumerate(chosen):
        if not isinstance(part, Places) or (numbers[part.mask], part.column) != (numbers[mask], number):
            raise NotWholeError
    return mask
