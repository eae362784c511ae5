"""Where a mask is true, as torch.nonzero and torch.where say it, and how often.

Of `rows, slots = torch.where(choice == expert)` every column is an index: x[rows], weights[rows, slots].
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from hbpcompiler.compiler.trace.rows import NotWholeError, Writer, shape_of
from hbpcompiler.rules.shared.torch_operations import COLUMN, DIFFERS, PERMUTE


@dataclass(frozen=True)
class Places:
    """The places where a mask is true: the table of them, or one of its columns."""

    mask: Node
    columns: tuple[int, ...]
    """Of each of the table's columns the mask's axis."""
    column: int | None = None
    """The axis whose places these are; None: the whole table."""


@dataclass(frozen=True)
class Count:
    """How many rows there are, or a number made of that: a tensor."""

    number: Node
    picked_by: Node | None = None
    """The mask that picks so many rows; None: a number made of lengths."""


@dataclass(frozen=True)
class InOrder:
    """0, 1, 2, ..., as many as there are rows."""


def places_of(asked: Node, writer: Writer) -> Places:
    """The table of the places where `asked` is not zero. The axis of the samples, whose length is a symbol, comes first
    in its mask, so that rows lie sample by sample."""
    mask = asked if asked.meta["val"].dtype is torch.bool else writer.once(DIFFERS, asked, 0)
    order = sorted(range(len(shape_of(mask))), key=lambda axis: isinstance(shape_of(mask)[axis], int))
    if order != sorted(order):
        mask = writer.once(PERMUTE, mask, order)
    return Places(mask, tuple(order.index(axis) for axis in range(len(order))))


def column_of(table: Places, node: Node) -> Places:
    """What an operation on the table is: one of its columns, or the only one in any form. Raises NotWholeError."""
    axes = len(table.columns)
    arguments: Any = node.args
    if table.column is not None:
        raise NotWholeError
    if node.target is operator.getitem:
        return replace(table, column=table.columns[arguments[1]])
    if node.target is COLUMN and arguments[1] in (1, -1):
        return replace(table, column=table.columns[arguments[2] % axes])
    if axes != 1 or len(shape_of(node)) != 1:
        raise NotWholeError
    return replace(table, column=0)


def placed(chosen: Sequence[Any], numbers: Mapping[Node, int]) -> tuple[Node, tuple[int, ...]]:
    """The mask that an index is, or of whose places it is columns, and which of the mask's axes it goes along.
    `numbers` are the same for masks that are the same. Raises NotWholeError."""
    first = chosen[0]
    mask = first.mask if isinstance(first, Places) else first
    if not isinstance(mask, Node) or mask.meta["val"].dtype is not torch.bool:
        raise NotWholeError
    if first is mask:
        if len(chosen) > 1:
            raise NotWholeError
        return mask, tuple(range(len(shape_of(mask))))
    axes: list[int] = []
    for part in chosen:
        if not isinstance(part, Places) or numbers[part.mask] != numbers[mask] or part.column is None:
            raise NotWholeError
        if part.column in axes:
            raise NotWholeError
        axes.append(part.column)
    return mask, tuple(axes)
