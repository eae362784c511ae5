"""Where the state lies and what was found there: compared by identity, in a few microseconds, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, call, is_, itemgetter
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
        self._attributes: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._getters: list[Callable[[Any], tuple[Any, ...]]] = []
        self._got: list[Any] = []
        self._functions: list[FunctionType] = []
        self._codes: list[Any] = []
        self._cells: list[CellType] = []
        self._contents: list[Any] = []
        self._names: list[tuple[MutableMapping[str, Any], str, Any]] = []
        self._names_of_libraries: list[tuple[MutableMapping[str, Any], str, Any]] = []
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
        self._checks: list[Callable[[], bool]] | None = None

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

    def entries(self, held: dict[str, Any], names: Sequence[str]) -> None:
        """Two entries of a dict or more, and how many it has in all."""
        self._copies.append((held, dict(held)))
        self._attributes.append(held)
        self._sizes.append(len(held))
        self._getters.append(itemgetter(*names))
        self._got += [held[name] for name in names]

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

    def name_of_library(self, held: MutableMapping[str, Any], name: str) -> None:
        """The same, of what is never put back: who replaces it does so for all, perhaps in another thread."""
        self._names_of_libraries.append((held, name, held.get(name, MISSING)))

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
        if self._checks is None:
            self._checks = list(self._needed())
        try:
            return all(check() for check in self._checks)
        except (RuntimeError, ValueError, KeyError, AttributeError, ReferenceError):
            # Changed while it was read, an emptied cell, an entry, an attribute or an object that is gone.
            return False

    def _needed(self) -> Iterator[Callable[[], bool]]:
        """One check for each kind of place that there is: a call runs through them, so they are loops without Python's
        own steps."""
        views, found = (*self._views, _END), (*self._found, *_END)
        yield lambda: not any(self._empty) and all(map(is_, chain.from_iterable(views), found))
        if self._attributes:
            yield lambda: [*map(len, self._attributes)] == self._sizes and all(
                map(is_, chain.from_iterable(map(call, self._getters, self._attributes)), self._got))
        if self._objects:
            yield lambda: all(map(is_, map(type, self._objects), self._kinds))
        if self._tensors:
            yield lambda: [*map(_FACTS, self._tensors)] == self._facts
        if self._functions:
            yield lambda: [*map(_CODE, self._functions)] == self._codes
        if self._cells:
            yield lambda: all(map(is_, map(_CONTENT, self._cells), self._contents))
        if self._names or self._names_of_libraries:
            held, names, values = zip(*self._names, *self._names_of_libraries, strict=True)
            yield lambda: all(map(is_, map(_entry, held, names), values))
        if self._slots:
            items, attributes, values_of = zip(*self._slots, strict=True)
            yield lambda: all(map(is_, map(getattr, items, attributes, repeat(MISSING)), values_of))
        if self._readers:
            yield lambda: all(reader() is value for reader, value in zip(self._readers, self._read, strict=True))
        if self._arrays:
            yield lambda: [*map(content, self._arrays)] == self._numbers

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


def _entry(held: MutableMapping[str, Any], name: str) -> Any:
    return held.get(name, MISSING)


_END = (object(),)
"""Shows whether as many were met as were found."""
