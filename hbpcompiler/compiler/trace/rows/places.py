"""Where a mask is true, as torch.nonzero and torch.where say it, and how often.

Of `rows, slots = torch.where(choice == expert)` every column is an index: x[rows], weights[rows, slots].
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from hbpcompiler.compiler.trace.fx_graph.by_name import given_to
from hbpcompiler.compiler.trace.rows.rows import NotWholeError, Writer, shape_of
from hbpcompiler.rules.shared.torch_operations import (
    COLUMN,
    COPYING,
    DIFFERS,
    IN_ORDER,
    PERMUTE,
    RESHAPES,
    SLICE,
    SPLITS,
    TURNING,
    UNBIND,
)


@dataclass(frozen=True)
class Places:
    """The places where a mask is true: the table of them, or one of its columns."""

    mask: Node
    columns: tuple[int, ...]
    """Of each of the table's columns the mask's axis."""
    column: int | None = None
    """The axis whose places these are; None: the whole table."""
    is_turned: bool = False
    """Whether the table's columns lie along its first axis."""


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


def of_places(table: Places, node: Node) -> Places | list[Places]:
    """What an operation on places gives: the same turned or copied, some of the columns, or one of them. Raises
    NotWholeError."""
    arguments: Any = node.args
    called, value, before = node.target, node.meta["val"], node.all_input_nodes[0].meta["val"]
    across, columns = int(not table.is_turned), table.columns
    if called is operator.getitem:
        return replace(table, column=columns[arguments[1]])
    given = given_to(node)
    if isinstance(value, Tensor) and value.dtype is not before.dtype:
        raise NotWholeError
    if called in COPYING or (called in RESHAPES and str(value.shape) == str(before.shape)):
        return table
    if table.column is not None:
        raise NotWholeError
    if called in TURNING and str(value.shape) == str(before.shape[::-1]):
        return replace(table, is_turned=not table.is_turned)
    if called in (COLUMN, SLICE, UNBIND, *SPLITS) and given.get("dim", 0) % 2 == across:
        if called is COLUMN:
            return replace(table, column=columns[given["index"] % len(columns)])
        if called is SLICE:
            return replace(table, columns=columns[given.get("start") : given.get("end") : given.get("step")])
        if called is UNBIND:
            return [replace(table, column=column) for column in columns]
        if len(value) == len(columns):
            return [replace(table, columns=(column,)) for column in columns]
    if called in RESHAPES and len(columns) == 1 and str(value.shape) == str(before.shape[1 - across :][:1]):
        return replace(table, column=columns[0])
    raise NotWholeError


def of_numbers(numbers: Node, chosen: Sequence[Any]) -> Places | None:
    """Of 0, 1, 2, ... what a mask or places pick: the places. None of other numbers."""
    given = [each for each in numbers.args if not isinstance(each, Node)]
    whole = numbers.meta["val"]
    if numbers.target not in IN_ORDER or given not in ([], [0], [0, 1]) or whole.is_floating_point() or len(chosen) > 1:
        return None
    (first,) = chosen
    if isinstance(first, Places):
        return None if first.column is None else first
    if not isinstance(first, Node) or first.meta["val"].dtype is not torch.bool or len(shape_of(first)) != 1:
        return None
    return Places(first, (0,), 0)


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
