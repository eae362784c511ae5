"""Where the state lies and what was found there: compared by identity, in a few microseconds, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from itertools import chain
from operator import attrgetter, is_
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor

_FACTS = attrgetter("shape", "dtype", "requires_grad", "device", "_backward_hooks")
_CODE = attrgetter("__code__", "__defaults__", "__kwdefaults__")
_CONTENT = attrgetter("cell_contents")
MISSING = object()


def content(array: Any) -> bytes:
    """The numbers of a tensor or of an array of numpy's, Python's or C's."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return bytes(array.tobytes()) if hasattr(array, "tobytes") else bytes(array)


class Watched:
    """Containers with what they held when a walk came by."""

    def __init__(self) -> None:
        self._views: list[Iterable[Any]] = []
        self._found: list[Any] = []
        self._empty: list[Any] = []
        self._functions: list[FunctionType] = []
        self._codes: list[Any] = []
        self._cells: list[CellType] = []
        self._contents: list[Any] = []
        self._names: list[tuple[MutableMapping[str, Any], str, Any]] = []
        self._slots: list[tuple[Any, str, Any]] = []
        self._objects: list[Any] = []
        self._kinds: list[type] = []
        self._tensors: list[Tensor] = []
        self._facts: list[Any] = []
        self._arrays: list[Any] = []
        self._numbers: list[bytes] = []
        self._copies: list[tuple[Any, Any]] = []
        self._own_names: list[tuple[MutableMapping[str, Any], list[str]]] = []
        self._readers: list[Callable[[], Any]] = []
        self._read: list[Any] = []

    # -- filled by the walk -------------------------------------------------------------------------------------------

    def mapping(self, held: Mapping[Any, Any], with_keys: bool = True) -> None:
        """A dict, or a class's: which values it has, in their order, and under which keys."""
        if isinstance(held, MutableMapping):
            self._copies.append((held, dict(held)))
        if not held:
            self._empty.append(held)
            return
        for view in (held.keys(), held.values()) if with_keys else (held.values(),):
            self._views.append(view)
            self._found += view

    def keys(self, held: MutableMapping[str, Any]) -> None:
        """Which attributes an object has, whatever they are."""
        self._own_names.append((held, list(held)))
        if not held:
            self._empty.append(held)
            return
        self._views.append(held.keys())
        self._found += held.keys()

    def elements(self, held: Any) -> None:
        """A list, a set, an array of objects."""
        if isinstance(held, list):
            self._copies.append((held, list(held)))
        if not held:
            self._empty.append(held)
            return
        self._views.append(held)
        self._found += held

    def function(self, function: FunctionType) -> None:
        self._functions.append(function)
        self._codes.append(_CODE(function))

    def cell(self, cell: CellType) -> None:
        self._cells.append(cell)
        self._contents.append(_CONTENT(cell))

    def name(self, held: MutableMapping[str, Any], name: str) -> None:
        """One entry of a dict, which may be missing."""
        self._names.append((held, name, held.get(name, MISSING)))

    def slot(self, item: Any, name: str) -> None:
        """An attribute that lies in no dict, which may be missing."""
        self._slots.append((item, name, getattr(item, name, MISSING)))

    def kind(self, item: Any) -> None:
        """The class of an object."""
        self._objects.append(item)
        self._kinds.append(type(item))

    def tensor(self, tensor: Tensor) -> None:
        """Its shape, dtype, device and requires_grad, not its numbers."""
        self._tensors.append(tensor)
        self._facts.append(_FACTS(tensor))
        if tensor._backward_hooks is not None:
            self.mapping(tensor._backward_hooks)

    def numbers(self, array: Any) -> bytes:
        """The numbers of a tensor or array, where a trace has read them."""
        self._arrays.append(array)
        self._numbers.append(content(array))
        return self._numbers[-1]

    def read(self, reader: Callable[[], Any], weakly: bool) -> Any:
        """What a reader gives, now and at each call; weakly: it is not kept, which would keep it alive."""
        found = reader()
        self._readers.append((lambda: reader() is not None) if weakly else reader)
        self._read.append(found is not None if weakly else found)
        return found

    # -- asked by calls -----------------------------------------------------------------------------------------------

    def unchanged(self) -> bool:
        """Whether everything is what it was; False too where that cannot be said."""
        try:
            return (not any(self._empty)
                    and all(map(is_, chain.from_iterable((*self._views, _END)), (*self._found, *_END)))
                    and [*map(type, self._objects)] == self._kinds
                    and [*map(_FACTS, self._tensors)] == self._facts
                    and [*map(_CODE, self._functions)] == self._codes
                    and all(map(is_, map(_CONTENT, self._cells), self._contents))
                    and all(held.get(name, MISSING) is value for held, name, value in self._names)
                    and all(getattr(item, name, MISSING) is value for item, name, value in self._slots)
                    and all(reader() is value for reader, value in zip(self._readers, self._read, strict=True))
                    and [*map(content, self._arrays)] == self._numbers)
        except (RuntimeError, ValueError, AttributeError, ReferenceError):
            # Changed while it was read, an emptied cell, an attribute or an object that is gone.
            return False

    def put_back(self) -> None:
        """Undo what running the model has done to its Python state: counters, kept activations."""
        for held, copy in self._copies:
            if isinstance(held, list):
                if len(held) != len(copy) or not all(map(is_, held, copy)):
                    held[:] = copy
                continue
            for key in [key for key in held if key not in copy]:
                del held[key]
            for key, value in copy.items():
                if held.get(key, MISSING) is not value:
                    held[key] = value
        for own, names in self._own_names:
            for name in own.keys() - names:
                del own[name]
        for cell, value in zip(self._cells, self._contents, strict=True):
            cell.cell_contents = value
        for held, name, value in self._names:
            if held.get(name, MISSING) is value:
                continue
            if value is MISSING:
                del held[name]
            else:
                held[name] = value


_END = (object(),)
