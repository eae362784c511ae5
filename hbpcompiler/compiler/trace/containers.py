"""Nested containers taken apart into tensors and put together again: what a batch is and what a model returns.

Tuples, lists, dicts, named tuples, dataclasses and whatever else torch.utils._pytree knows. None, numbers and texts
in them are kept as they are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

CONSTANTS = (bool, int, float, complex, str, bytes, type(None))


class StrangerError(Exception):
    """Something in a structure that is neither a tensor nor a constant, and where it is."""

    def __init__(self, path: str, item: Any) -> None:
        super().__init__(path)
        self.path, self.item = path, item


@dataclass(frozen=True)
class Leaf:
    """An entry of a structure: a tensor (`constant` is None, `record` too), a constant, or a dataclass's fields."""

    path: tuple[Any, ...]
    is_tensor: bool
    constant: Any = None
    record: Record | None = None


@dataclass(frozen=True)
class Record:
    """A dataclass that nobody registered with pytree."""

    template: Any
    fields: Structure

    def build(self, tensors: Iterator[Tensor]) -> Any:
        made = copy.copy(self.template)
        for name, value in self.fields.fill(tensors).items():
            object.__setattr__(made, name, value)
        return made

    def identity(self) -> str:
        """Of the fields, and of the class: another's methods may make something else of the same fields."""
        kind = type(self.template)
        return f"{kind.__module__}.{kind.__qualname__}{self.fields.identity()}"


@dataclass(frozen=True)
class Structure:
    """A tree whose leaves are tensors' places and constants."""

    spec: Any
    leaves: tuple[Leaf, ...]

    def fill(self, tensors: Iterator[Tensor]) -> Any:
        filled = [leaf.record.build(tensors) if leaf.record is not None else next(tensors) if leaf.is_tensor
                  else leaf.constant for leaf in self.leaves]
        return pytree.tree_unflatten(filled, self.spec)

    def build(self, tensors: Sequence[Tensor]) -> Any:
        """The tree with these tensors in the places of those that it was made of."""
        return self.fill(iter(tensors))

    def paths(self) -> list[tuple[str | int, ...]]:
        """For each tensor the keys, indices and field names that lead to it."""
        found: list[tuple[str | int, ...]] = []
        for leaf in self.leaves:
            own = tuple(_key(entry) for entry in leaf.path)
            if leaf.record is not None:
                found += [(*own, *inner) for inner in leaf.record.fields.paths()]
            elif leaf.is_tensor:
                found.append(own)
        return found

    @property
    def is_one_tensor(self) -> bool:
        return len(self.leaves) == 1 and self.leaves[0].is_tensor and not self.leaves[0].path

    def identity(self) -> str:
        """Equal for structures that are built alike."""
        parts = [leaf.record.identity() if leaf.record else repr((leaf.is_tensor, leaf.constant))
                 for leaf in self.leaves]
        return f"{self.spec}{parts}"


def take_apart(tree: Any, *, leave_out: bool = False) -> tuple[list[Tensor], Structure]:
    """The tensors, and what puts them together again.

    An object that is neither a tensor nor a constant raises StrangerError; with `leave_out` None takes its place (a
    language model's cache among its outputs). A number that depends on the batch is never left out.
    """
    if isinstance(tree, Tensor):
        return [tree], ONE
    entries, spec = pytree.tree_flatten_with_path(tree)
    tensors: list[Tensor] = []
    leaves = []
    for path, item in entries:
        if isinstance(item, Tensor):
            tensors.append(item)
            leaves.append(Leaf(path, True))
        elif isinstance(item, CONSTANTS):
            leaves.append(Leaf(path, False, item))
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
            try:
                inner, fields = take_apart(values, leave_out=leave_out)
            except StrangerError as stranger:
                raise StrangerError(pytree.keystr(path) + stranger.path, stranger.item) from None
            tensors += inner
            leaves.append(Leaf(path, False, record=Record(item, fields)))
        elif leave_out and not isinstance(item, torch.SymInt):
            leaves.append(Leaf(path, False, None))
        else:
            raise StrangerError(pytree.keystr(path), item)
    return tensors, Structure(spec, tuple(leaves))


def _key(entry: Any) -> str | int:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            found = getattr(entry, name)
            return found if isinstance(found, str | int) else str(found)
    return str(entry)


ONE = Structure(pytree.tree_structure(0), (Leaf((), True),))
"""A tensor by itself."""
