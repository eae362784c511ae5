"""Masks [*m, d] that are the same along their last axis, as in x.masked_select(mask[..., None]).view(-1, d): they pick
whole rows of x, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from hbpcompiler.compiler.trace.rows.rows import NotWholeError, Rows, Writer, are_alike, shape_of
from hbpcompiler.rules.shared.torch_operations import COLUMN, EXPAND, LONGER


def narrowed(mask: Node, writer: Writer) -> Node | None:
    """[*m] of such a mask, which may have one for d; None of others."""
    inner = mask.args[0] if mask.target is EXPAND else mask
    if not isinstance(inner, Node) or len(shape_of(inner)) != len(shape_of(mask)) or len(shape_of(mask)) < 2:
        return None
    if not are_alike(shape_of(inner), [*shape_of(mask)[:-1], 1]):
        return None
    if inner.target is LONGER and inner.args[1] in (-1, len(shape_of(inner)) - 1):
        narrow = inner.args[0]
        return narrow if isinstance(narrow, Node) else None
    return writer.once(COLUMN, inner, -1, 0)


def widened(mask: Node, values: Node, writer: Writer) -> Node:
    """A mask [*m, 1] of values [*m, d] as [*m, d]; any other as it is."""
    shape = shape_of(values)
    if len(shape) != len(shape_of(mask)) or not isinstance(shape[-1], int) or shape[-1] == 1:
        return mask
    if narrowed(mask, writer) is None:
        return mask
    return writer.once(EXPAND, mask, [*(-1 for _ in shape[1:]), shape[-1]])


def as_rows(elements: Rows, length: object, writer: Writer) -> Rows | None:
    """[u, d] of elements [u * d] that are whole rows of this length; None where they are not."""
    narrow = None if elements.beside else narrowed(elements.mask, writer)
    if narrow is None or not are_alike(shape_of(elements.whole)[-1:], [length]):
        return None
    return Rows(elements.whole, narrow, narrow, elements.given)


def in_places_of(mask: Node, axes: Sequence[int], rows: Rows, base: Node, writer: Writer) -> tuple[Rows, Sequence[int]]:
    """Rows for the places of a mask along these of its axes. Raises NotWholeError unless they were picked by it."""
    numbers = writer.numbers
    if numbers[mask] == numbers[rows.picked_by]:
        return Rows(writer.as_picked(rows), mask, mask), axes
    narrow, narrow_of_rows = narrowed(mask, writer), narrowed(rows.mask, writer)
    if narrow is None or list(axes) != list(range(len(shape_of(mask)))):
        raise NotWholeError
    if numbers[narrow] == numbers[rows.picked_by] and are_alike(rows.beside, shape_of(base)[-1:]):
        return Rows(writer.as_picked(rows), narrow, narrow), axes[:-1]
    if narrow_of_rows is None or rows.beside or numbers[narrow] != numbers[narrow_of_rows]:
        raise NotWholeError
    return rows, axes


def as_long_as(rows: Rows, beside: Sequence[Any], writer: Writer) -> Rows:
    """The rows with axes of length one as long as these, as torch broadcasts what is put."""
    ones = [own == 1 and length != 1 for own, length in zip(rows.beside, beside, strict=False)]
    if len(rows.beside) != len(beside) or not any(ones) or not all(isinstance(length, int) for length in beside):
        return rows
    return replace(rows, whole=writer.call(EXPAND, rows.whole, [*[-1] * rows.lead, *beside]), given=None)
