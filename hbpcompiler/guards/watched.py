"""Where the state lies and what was found there: compared by identity, in a few microseconds, and put back."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.guards import kept, queues
from hbpcompiler.guards.atoms import is_plain
from hbpcompiler.guards.conditions import Conditions
from hbpcompiler.guards.memory import shared
from hbpcompiler.guards.module_entries import ONLY_WEAK, weights_seen

MISSING = object()
LEFT = object()
"""In the place of a value that is not kept, but made anew of the others that are put back."""
LONG = 50
"""Entries of a dict from which on they are compared by a loop and not one by one."""


def content(array: Any) -> bytes:
    """The numbers of a tensor or of an array of numpy's, Python's or C's."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return bytes(array.tobytes()) if hasattr(array, "tobytes") else bytes(array)


def same(held: Collection[Any], found: list[Any]) -> bool:
    """Whether it has these elements, themselves and in their order."""
    return len(held) == len(found) and all(one is other for one, other in zip(held, found, strict=True))


def plain_attributes(kind: type) -> dict[str, Any]:
    """What a class itself says in plain values."""
    return {name: value for name, value in kind.__dict__.items() if not name.startswith("__") and is_plain(value)}


class Watched:
    """Containers with what they held when a walk came by."""

    def __init__(self) -> None:
        self.puts_back = True
        """Whether what is met now is put back: not what libraries' objects hold, which others may move meanwhile."""
        self._moved = Conditions()
        self._when, self._name = self._moved.when, self._moved.named
        self._checks: list[Callable[[], bool]] | None = None
        self._copies: list[tuple[Any, Any]] = []
        self._back: list[Callable[[], Any]] = []
        self._own_names: list[tuple[MutableMapping[str, Any], list[str]]] = []
        self._of_classes: list[tuple[type, set[str], dict[str, Any]]] = []
        self._contents: list[tuple[CellType, Any]] = []
        self._names: list[tuple[MutableMapping[str, Any], str, Any]] = []

    # -- filled by the walk -------------------------------------------------------------------------------------------

    def mapping(self, held: Mapping[Any, Any]) -> None:
        """A dict: which values it has, in their order, and under which keys."""
        if isinstance(held, MutableMapping) and self.puts_back:
            self._copies.append((held, dict(held)))
            if isinstance(held, dict):
                self._back.append(partial(_in_order, held, list(held)))
        self._mapping(held)

    def remembered(self, function: Any, entries: dict[Any, Any]) -> None:
        """What functools remembers for a function."""
        self._mapping(entries)
        if self.puts_back:
            before = dict(entries)
            self._back.append(lambda: kept.take_back(function, entries, before))

    def text_in_memory(self, text: Any) -> None:
        """A file that is none: put back where it has been written or read."""
        found = kept.contents(text)
        if self.puts_back:
            self._back.append(lambda: kept.write_back(text, found))

    def queue(self, held: Any) -> None:
        """What this thread does to a queue is undone."""
        found = queues.waiting(held)
        self._back.append(lambda: queues.undo(held, found))

    def _mapping(self, held: Mapping[Any, Any]) -> None:
        if _short(held):
            self._keys(held)
            self._entries(held, list(held))
        else:
            self._elements(held.keys())
            self._elements(held.values())

    def entries(self, held: dict[str, Any], names: Sequence[str]) -> None:
        """Some entries of a dict, and how many it has in all."""
        self._copies.append((held, {**held, ONLY_WEAK: LEFT} if ONLY_WEAK in held else dict(held)))
        self._when(f"len({self._name(held)}) != {self._name(len(held))}")
        self._entries(held, names)

    def empty_entry(self, held: dict[str, Any], name: str) -> None:
        """An entry that is an empty container, and may be another as long as that is empty."""
        self._copies.append((held[name], {}))
        self._when(f"{self._name(held)}[{name!r}]")

    def keys(self, held: MutableMapping[str, Any]) -> None:
        """Which attributes an object has, whatever they are."""
        if self.puts_back:
            self._own_names.append((held, list(held)))
        if _short(held):
            self._keys(held)
        else:
            self._elements(held.keys())

    def attributes_of_class(self, kind: type) -> None:
        """A class's: which values it has, in their order."""
        self._of_classes.append((kind, set(kind.__dict__), plain_attributes(kind)))
        self._elements(kind.__dict__.values())

    def elements(self, held: Any) -> None:
        """A list, a set, an array of objects."""
        if isinstance(held, list | deque | set) and self.puts_back:
            self._copies.append((held, set(held) if isinstance(held, set) else list(held)))
        self._elements(held)

    def function(self, function: FunctionType) -> None:
        self._attributes(function, ("__code__", "__defaults__", "__kwdefaults__"))

    def cell(self, cell: CellType) -> None:
        """ValueError where nothing is in it yet."""
        self._contents.append((cell, cell.cell_contents))
        self._attributes(cell, ("cell_contents",))

    def empty_cell(self, cell: CellType) -> None:
        """A variable of a function around that has no value yet."""
        self._when(f"{self._name(kept.is_filled)}({self._name(cell)})")
        if self.puts_back:
            self._back.append(lambda: kept.empty(cell))

    def name(self, held: MutableMapping[str, Any], name: str) -> None:
        """One entry of a dict, which may be missing."""
        if self.puts_back:
            self._names.append((held, name, held.get(name, MISSING)))
        self.name_of_library(held, name)

    def name_of_library(self, held: MutableMapping[str, Any], name: str) -> None:
        """The same, of what is never put back: who replaces it does so for all, perhaps in another thread."""
        if name in held:
            self._entries(held, [name])
        else:
            self._when(f"{name!r} in {self._name(held)}")

    def slot(self, item: Any, name: str) -> None:
        """An attribute that lies in no dict, which may be missing."""
        value = getattr(item, name, MISSING)
        self._when(f"getattr({self._name(item)}, {name!r}, {self._name(MISSING)}) is not {self._name(value)}")
        if self.puts_back and not isinstance(item, type):
            self._back.append(lambda: _set(item, name, value))

    def kind(self, item: Any) -> None:
        """The class of an object."""
        self._when(f"type({self._name(item)}) is not {self._name(type(item))}")

    def tensor(self, tensor: Tensor) -> None:
        """Its shape, dtype, device and requires_grad, not its numbers."""
        self._attributes(tensor, ("dtype", "requires_grad", "_backward_hooks"))
        for made_anew in ("shape", "device"):
            value = self._name(getattr(tensor, made_anew))
            self._when(f"{self._name(tensor)}.{made_anew} != {value}")
        if tensor._backward_hooks is not None:
            self.mapping(tensor._backward_hooks)

    def numbers(self, array: Any) -> bytes:
        """The numbers of a tensor or array, where a trace has read them."""
        found = content(array)
        self._when(f"{self._name(content)}({self._name(array)}) != {self._name(found)}")
        if self.puts_back:
            self._back.append(lambda: None if content(array) == found else kept.write_numbers(array, found))
        return found

    def memory(self, tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """Which of the tensors lie in one place, and that they still lie there: from one moved, others differ."""
        groups = shared(tensors)
        for number in [number for group in groups for number in group]:
            self._when(f"{self._name(tensors[number])}.data_ptr() != {tensors[number].data_ptr()}")
        return [tuple(group) for group in groups]

    def read(self, reader: Callable[[], Any], weakly: bool) -> Any:
        """What a reader gives, now and at each call; weakly: it is not kept, which would keep it alive."""
        found = reader()
        what = f"{self._name(reader)}()"
        self._when(f"({what} is None) is {found is not None}" if weakly else f"{what} is not {self._name(found)}")
        return found

    def answer(self, reader: Callable[[], Any]) -> Any:
        """What a reader gives, now and at each call: a number or a text, or what is made anew each time."""
        found = reader()
        self._when(f"{self._name(reader)}() != {self._name(found)}")
        return found

    def _elements(self, held: Collection[Any]) -> None:
        if len(held):
            self._when(f"not {self._name(same)}({self._name(held)}, {self._name(list(held))})")
        else:
            self._when(f"len({self._name(held)})")

    def _keys(self, held: Mapping[str, Any]) -> None:
        if held:
            self._when(f"[*{self._name(held)}] != {self._name(list(held))}")
        else:
            self._when(self._name(held))

    def _entries(self, held: Mapping[str, Any], names: Sequence[str]) -> None:
        where = self._name(held)
        for name in names:
            self._when(f"{where}[{name!r}] is not {self._name(held[name])}")

    def _attributes(self, item: Any, names: Sequence[str]) -> None:
        where = self._name(item)
        for name in names:
            self._when(f"{where}.{name} is not {self._name(getattr(item, name))}")

    # -- asked by calls -----------------------------------------------------------------------------------------------

    def unchanged(self) -> bool:
        """Whether everything is what it was; False too where that cannot be said."""
        if self._checks is None:
            self._checks = self._moved.written()
        try:
            for moved in self._checks:  # noqa: SIM110  # a generator takes longer
                if moved():
                    return False
            return True
        except (RuntimeError, ValueError, KeyError, AttributeError, ReferenceError):
            # Changed while it was read, an emptied cell, an entry, an attribute or an object that is gone.
            return False

    def put_back(self) -> None:
        """Undo what running the model has done to its Python state: counters, kept activations."""
        for held, copy in self._copies:
            if not isinstance(held, MutableMapping):
                if isinstance(held, set):
                    held &= copy
                    held |= copy
                elif not same(held, copy):
                    held.clear()
                    held.extend(copy)
                continue
            for key in [key for key in held if key not in copy]:
                del held[key]
            for key, value in copy.items():
                if value is not LEFT and held.get(key, MISSING) is not value:
                    held[key] = value
        for held, copy in self._copies:  # when the weights that they are of are back
            if isinstance(copy, dict) and copy.get(ONLY_WEAK) is LEFT:
                held[ONLY_WEAK] = weights_seen(held)
        for put_back in self._back:
            put_back()
        for own, names in self._own_names:
            for name in own.keys() - names:
                del own[name]
        for kind, known, values in self._of_classes:
            for name in plain_attributes(kind).keys() - known:
                type.__delattr__(kind, name)  # past a metaclass that lets nobody change its classes
            for name, value in values.items():
                if kind.__dict__.get(name, MISSING) is not value:
                    type.__setattr__(kind, name, value)
        for cell, value in self._contents:
            cell.cell_contents = value
        for held, name, value in self._names:
            if held.get(name, MISSING) is value:
                continue
            if value is MISSING:
                del held[name]
            else:
                held[name] = value


def _in_order(held: dict[Any, Any], keys: list[Any]) -> None:
    """A dict that has these keys, in this order."""
    if list(held) != keys and held.keys() == set(keys):
        for key in keys:
            held[key] = held.pop(key)


def _set(item: Any, name: str, value: Any) -> None:
    """By the object's own way: a frozen dataclass lets nobody in by another."""
    if getattr(item, name, MISSING) is value:
        return
    if value is MISSING:
        object.__delattr__(item, name)
    else:
        object.__setattr__(item, name, value)


def _short(held: Mapping[Any, Any]) -> bool:
    """Whether its entries can be written out one by one."""
    return type(held) in (dict, OrderedDict) and len(held) < LONG and all(type(key) is str for key in held)
