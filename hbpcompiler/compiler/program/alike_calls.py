"""Calls that are alike make tensors that are alike: of meta tensors, each kind of call is made once.

torch works out what most operations make in Python, which takes a hundred times as long as an empty tensor, and a
network of a hundred layers has few kinds of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Made = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""A tensor in memory of its own."""
Known = dict[Hashable, Made | tuple[Made, ...] | torch.dtype]
"""A dtype alone for calls that make one number of one of each argument: their shape is that of what is given."""
EVERYWHERE: Known = {}
"""What calls made in any program of this process: it depends on nothing but what is asked."""
MOST = 100_000
"""Calls that are remembered at once."""


@dataclass(frozen=True)
class AlikeCalls:
    """What calls have made so far, as far as they made tensors in new memory; all others are made again."""

    known: Known = field(default_factory=dict)
    most: int = MOST

    def result(self, name: Hashable, args: Sequence[Any], kwargs: Mapping[str, Any], call: Callable[[], Any],
               pointwise: bool = False) -> Any:
        """What `call` makes, which is `name` called with meta tensors among these arguments.

        `pointwise`: each number of the result is made of one of each argument, expanded, so that shapes need not be
        alike.
        """
        shape = shape_of_all((*args, *kwargs.values())) if pointwise else None
        kind = kind_of_call(name, args, kwargs, shape)
        if kind is None:
            return call()
        made = self.known.get(kind)
        if made is not None:
            return made_again(made, shape)
        result = call()
        made = made_of(result, (*args, *kwargs.values()))
        if shape is not None:
            made = dtype_alone(made, shape)
        if made is not None:
            if len(self.known) >= self.most:
                self.known.clear()
            self.known[kind] = made
        return result


def shape_of_all(given: Sequence[Any]) -> torch.Size | None:
    """The shape of that tensor which all that a call is given are expanded to, if each lies in memory row by row;
    None otherwise."""
    shapes = set()
    for item in given:
        if isinstance(item, list | tuple | dict):
            return None
        if isinstance(item, Tensor):
            if item.stride() != row_by_row(item.shape):
                return None
            shapes.add(item.shape)
    whole = expanded(frozenset(shapes))
    return whole if whole in shapes else None


@lru_cache(maxsize=4096)
def expanded(shapes: frozenset[torch.Size]) -> torch.Size | None:
    """What tensors of these shapes are expanded to together; None where they do not fit."""
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None


@lru_cache(maxsize=4096)
def row_by_row(shape: torch.Size) -> tuple[int, ...]:
    """The strides of a new tensor."""
    return torch.empty(shape, device="meta").stride()


def dtype_alone(made: Any, shape: torch.Size) -> torch.dtype | None:
    """What has to be known of a result that has the shape of all that was given; None of others."""
    if made is None or made[:2] != (shape, row_by_row(shape)):
        return None
    dtype: torch.dtype = made[2]
    return dtype


def kind_of_call(name: Hashable, args: Sequence[Any], kwargs: Mapping[str, Any],
                 shape: torch.Size | None = None) -> Hashable | None:
    """Equal for calls that are alike; None for one that may be like no other.

    With `shape`, that of the result: whether tensors have axes, which decides on its dtype, and no more.
    """
    if shape is not None:
        args = [_without_lengths(item) for item in args]
        kwargs = {key: _without_lengths(item) for key, item in kwargs.items()}
    kind = name, torch.get_default_dtype(), shape is None, _kind(args), _kind(tuple(kwargs.items()))
    try:
        hash(kind)
    except TypeError:  # an argument that has no hash, such as the dict of all parameters
        return None
    return kind


def _without_lengths(item: Any) -> Any:
    """A tensor as far as it decides on the dtype of what is made number by number; anything else as it is."""
    return (item.dim() > 0, item.dtype) if isinstance(item, Tensor) else item


def _kind(item: Any) -> Hashable:
    """Equal for arguments of which a call makes tensors of equal shapes, strides and dtypes."""
    if isinstance(item, Tensor):
        return item.shape, item.stride(), item.dtype
    if isinstance(item, list | tuple):
        return type(item), tuple(map(_kind, item))
    if isinstance(item, slice):
        return slice, _kind((item.start, item.stop, item.step))
    return type(item), item  # 1 is not 1.0, nor True


def made_of(result: Any, given: Sequence[Any]) -> Made | tuple[Made, ...] | None:
    """How to make such a result again; None if it is no tensor, or shows what was given."""
    parts = result if type(result) is tuple else (result,)
    if not parts or not all(type(part) is Tensor and part.is_meta for part in parts):
        return None
    places = [storage_of(part) for part in parts]
    if len(set(places)) < len(places) or not set(map(storage_of, tensors_in(given))).isdisjoint(places):
        return None
    found = tuple((part.shape, part.stride(), part.dtype) for part in parts)
    return found if type(result) is tuple else found[0]


def made_again(made: Any, shape: torch.Size | None = None) -> Any:
    """Such a result; `shape` for one of which the dtype alone is known."""
    if shape is not None:
        return torch.empty(shape, dtype=made, device="meta")
    if isinstance(made[0], torch.Size):
        shape, strides, dtype = made
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    return tuple(map(made_again, made))


def storage_of(tensor: Tensor) -> int:
    """Where it lies: equal for tensors that share memory."""
    return int(tensor.untyped_storage()._cdata)


def tensors_in(item: Any) -> list[Tensor]:
    """The tensors among arguments, or results, and in lists of them."""
    if isinstance(item, Tensor):
        return [item]
    if isinstance(item, list | tuple):
        return [tensor for part in item for tensor in tensors_in(part)]
    return []
