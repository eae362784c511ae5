"""What operations make of tensors without memory: asked of torch once for each kind of inputs.

torch finds the shapes of results in Python, which takes a tenth of a millisecond and more a call; a program in chunks
asks for the same ones thousands of times.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """All that there is to know of a tensor without memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def new(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class Answers:
    """Results by operation, constants and the layouts of the tensors given."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}
        self._makes_new: dict[Any, bool] = {}

    def of(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> Any:
        """What `func(*args, **kwargs)` gives; `given` are the tensors among the arguments."""
        if func not in self._makes_new:
            self._makes_new[func] = _makes_new_tensors(func)
        if not given or not self._makes_new[func] or not all(tensor.is_meta for tensor in given):
            return func(*args, **kwargs)
        key = (func, _key(args), _key(kwargs))
        if key in self._known:
            return _made_anew(self._known[key])
        result = func(*args, **kwargs)
        made = list(tensors_in(result))
        memory = {storage_of(tensor) for tensor in given}
        if all(tensor.is_meta and storage_of(tensor) not in memory for tensor in made):
            self._known[key] = _layouts(result)
        return result


def _makes_new_tensors(func: Any) -> bool:
    """Whether, by its schema, an operation neither writes into tensors nor shows their memory."""
    schema = func._schema
    return not schema.is_mutable and all(each.alias_info is None for each in (*schema.arguments, *schema.returns))


def _key(item: Any) -> Hashable:
    """Equal for equal constants of one type (1 is not 1.0) and for tensors of one layout."""
    if isinstance(item, Tensor):
        return item.shape, item.stride(), item.dtype
    if isinstance(item, list | tuple):
        return tuple(map(_key, item))
    if isinstance(item, dict):
        return tuple((name, _key(value)) for name, value in item.items())
    return type(item), item


def _layouts(result: Any) -> Any:
    if isinstance(result, Tensor):
        return Layout(result.shape, result.stride(), result.dtype)
    return tuple(map(_layouts, result)) if isinstance(result, list | tuple) else result


def _made_anew(known: Any) -> Any:
    if isinstance(known, Layout):
        return known.new()
    return tuple(map(_made_anew, known)) if isinstance(known, tuple) else known


def storage_of(tensor: Tensor) -> int:
    """Equal for tensors that show the same memory."""
    return int(tensor.untyped_storage()._cdata)


def tensors_in(item: Any) -> Iterator[Tensor]:
    """Those in nested lists, tuples and dicts."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, dict):
        yield from tensors_in(list(item.values()))
    elif isinstance(item, list | tuple):
        for part in item:
            yield from tensors_in(part)
