"""The walk over all that a model and its loss can reach from Python, which a trace would bake in.

Modules: class, plain attributes, hooks, parameters and buffers, and how they are tied. Functions: code, defaults, cells
and, for those that are not of an installed package, the globals that their code names. Containers: their elements.
Other objects: dataclasses and namespaces whole; of others the plain attributes, and those that the code met so far
names; of what a method is bound to, and of objects of Python's and torch's classes (a scheduler), those that are named
alone, by code or by the methods that it names (a trainer that a loss is a method of has counters that it never reads).
Weak references and variables of a context or a thread: what they stand for. Tensors are numbered as they come: a
program reads them live.
"""

from __future__ import annotations

import enum
import functools
import types
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn, strided
from torch.nn.modules import module as every_module

from hbpcompiler.guards import kept, library, read_by_code
from hbpcompiler.guards.atoms import NOT_RUN, Same, atom, is_plain, of_library, plain_part, slots_of
from hbpcompiler.guards.code_walk import CodeWalk
from hbpcompiler.guards.draws import is_generator
from hbpcompiler.guards.module_entries import HOOKS_OF_ALL_MODULES, KEPT_BY_TORCH, hooks_read_by_calls, read_by_calls
from hbpcompiler.guards.queues import QUEUES

MOST = 20_000
"""Atoms from which on objects count as what they are, not as what they hold."""

_OF_STRIDES = ("stride", "is_contiguous")


class Walk(CodeWalk):
    """`key` is equal for equal states; `tensors` in the order met; `generators` of random numbers that are not torch's.

    `read` are the numbers of the tensors whose contents a trace has read: those belong to the key.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], read: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.tensors, self.generators = list[Tensor](), list[Any]()
        self._read = read
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # during the walk, so that no id is used twice
        self._classes: set[type] = set()
        self._later: deque[Callable[[], None]] = deque()
        for name in HOOKS_OF_ALL_MODULES:
            self._visit_all(getattr(every_module, name))
        self._visit(model)
        self._visit(loss)
        while self._later:
            self._later.popleft()()
        self._alive.clear()
        self._atoms.extend(self.watched.memory(self.tensors))
        self.key = tuple(self._atoms)

    def _visit(self, value: Any, direct: bool = True) -> None:
        plain = atom(value)
        if plain is not None:
            self._atoms.append(plain)
            return
        if id(value) in self._seen:
            self._atoms.append(("again", self._seen[id(value)]))
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        reader = library.reader(value)
        if reader is not None:
            self._atoms.append(Same(type(value)))
            self._visit(self.watched.read(reader, library.is_weak(value)), direct)
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, types.FunctionType):
            self._atoms.append(value.__code__)
            self._later.appendleft(lambda: self._function(value))
        elif isinstance(value, types.MethodType):
            self._atoms.append("method")
            self._visit(value.__func__)
            self._visit(value.__self__, direct=False)
        elif isinstance(value, functools.partial):
            self._atoms.append("partial")
            self._visit(value.func)
            self._visit_all(value.args, value.keywords)
        elif isinstance(value, dict | list | tuple | set | frozenset | deque | types.MappingProxyType):
            self._atoms.append((Same(type(value)), len(value)))
            self._container(value, direct)
            if isinstance(value, defaultdict):
                self.watched.slot(value, "default_factory")
                self._visit(value.default_factory, direct)
            if not of_library(type(value).__module__):
                self._object(value, direct)
        elif isinstance(value, type):
            self._atoms.append(Same(value))
            self._class(value)
        else:
            self._other(value, direct)

    def _visit_all(self, *held: Any) -> None:
        for one in held:
            self._container(one, True)

    def _container(self, held: Any, direct: bool) -> None:
        if isinstance(held, Mapping):
            self.watched.mapping(held)
            items = [part for pair in held.items() for part in pair]
        else:
            if not isinstance(held, tuple | frozenset):
                self.watched.elements(held)
            items = list(held)
        for item in items:
            self._visit(item, direct)

    def _tensor(self, tensor: Tensor) -> None:
        self.watched.tensor(tensor)
        number = len(self.tensors)
        self.tensors.append(tensor)
        facts = (type(tensor), tensor.dtype, tensor.device, tensor.requires_grad, bool(tensor._backward_hooks))
        shape = tuple(tensor.shape) if not tensor.is_nested else Same(tensor)
        numbers = self.watched.numbers(tensor) if number in self._read else b""
        self._atoms.append((*facts, shape, numbers))

        own = getattr(tensor, "__dict__", {})
        self.watched.keys(own)
        self._later.append(lambda: self._attributes_of_tensor(tensor, own))

    def _attributes_of_tensor(self, tensor: Tensor, own: dict[str, Any]) -> None:
        """Of p.scale = 2.0 what code names: optimizers keep there what no forward reads. So of where numbers lie."""
        if tensor.layout is strided and not tensor.is_nested and not self._names.isdisjoint(_OF_STRIDES):
            self._atoms.append(self.watched.answer(tensor.stride))
        for name in sorted(own.keys() & self._names):
            self._atoms.append(name)
            self.watched.name(own, name)
            self._visit(own[name])

    def _module(self, module: nn.Module) -> None:
        self.watched.kind(module)
        own = module.__dict__
        self._atoms.append((Same(type(module)), len(own)))
        containers = [*hooks_read_by_calls(own), "_parameters", "_buffers", "_modules"]
        empty = [name for name in containers if not own[name]]
        self.watched.entries(own, [name for name in read_by_calls(own) if name not in empty])
        for name in empty:
            self.watched.empty_entry(own, name)
        for name in sorted(own.keys() - KEPT_BY_TORCH):
            self._atoms.append(name)
            self._visit(own[name])
        for name in containers:
            if name not in empty:
                self._visit_all(own[name])
        self._class(type(module))

    def _class(self, kind: type) -> None:
        """What classes say that are not torch's or Python's."""
        if type(kind) is not type:
            self._class(type(kind))
        for base in kind.__mro__:
            if base in self._classes:
                continue
            if of_library(base.__module__):
                self._class_of_library(base)
                continue
            self._classes.add(base)
            self.watched.attributes_of_class(base)
            for name, value in base.__dict__.items():
                self._attribute_of_class(name, value)

    def _class_of_library(self, kind: type) -> None:
        """That nobody has put another forward in a module's place."""
        if issubclass(kind, nn.Module) and "forward" in kind.__dict__:
            self._classes.add(kind)
            self.watched.slot(kind, "forward")
            self._atoms.append(Same(kind.__dict__["forward"]))

    def _attribute_of_class(self, name: str, value: Any) -> None:
        if name in NOT_RUN:
            return
        function = read_by_code.function_behind(value)
        if isinstance(function, types.FunctionType):
            if name in self._names or name.startswith("__"):
                self._visit(function)
            else:
                self._methods.setdefault(name, []).append(function)
        elif not name.startswith("__"):
            self._atoms.append(name)
            self._visit(value)

    def _other(self, value: Any, direct: bool) -> None:
        """An object of some class."""
        kind = type(value)
        if is_generator(value):
            self.generators.append(value)
        described = library.buffer(value)
        if described is not None:
            self._atoms.append((*described, self.watched.numbers(value)))
            return
        if library.is_array_of_objects(value):
            self._atoms.append((kind, value.shape))
            self.watched.elements(library.Elements(value))
            for item in value.flat:
                self._visit(item, direct)
            return
        held = library.holder(value)
        if held is not None:
            self._atoms.append(getattr(value, "__name__", kind.__name__))
            self._visit(held, direct)
            return
        self._kept(value)
        if isinstance(value, enum.Enum):
            self._atoms.append(Same(value))
        else:
            self._atoms.append(plain_part(value))
        bare = not hasattr(value, "__dict__") and not slots_of(kind)
        if bare or library.is_closed(value) or len(self._atoms) > MOST:
            self._atoms.append(Same(value))
            return
        if of_library(kind.__module__) and not library.is_whole(kind):
            self._atoms.append(Same(value))
            self._later.append(lambda: self._attributes(value, direct=False))
            return
        self._atoms.append(Same(kind))
        self._object(value, direct)

    def _kept(self, value: Any) -> None:
        """What an object of C's holds out of sight; what a run adds to that is taken away again."""
        if isinstance(value, functools._lru_cache_wrapper):
            own = getattr(value, "__wrapped__", None)
            self._visit(own)
            if of_library(getattr(own, "__module__", None) or ""):
                return
        remembered = kept.remembered(value)
        if remembered is not None:
            entries, results = remembered
            self.watched.remembered(value, entries)
            self._atoms.append(len(entries))
            for item in (*entries, *results):
                self._visit(item)
            return
        if isinstance(value, QUEUES):
            self.watched.queue(value)
        answering = kept.answering(value)
        if answering is not None:
            self._atoms.append(self.watched.answer(answering))
            if isinstance(value, kept.IN_MEMORY):
                self.watched.text_in_memory(value)

    def _object(self, value: Any, direct: bool) -> None:
        """What an object's class says, and later, when more names are known, what it holds."""
        self._class(type(value))
        self._later.append(lambda: self._attributes(value, direct))

    def _attributes(self, value: Any, direct: bool) -> None:
        own, whole = getattr(value, "__dict__", {}), library.is_whole(type(value))
        is_users = whole or not of_library(type(value).__module__)  # else others may wait for what it says
        names = read_by_code.names_with_methods(type(value), self._names)
        self.watched.puts_back = is_users and not library.is_between_threads(value)
        self.watched.keys(own)
        slots = slots_of(type(value))
        for name in slots:
            self.watched.slot(value, name)
        named = {name: getattr(value, name) for name in slots if hasattr(value, name)} | own
        for name, attribute in sorted(named.items()):
            if whole or name in names or (direct and is_plain(attribute)):
                self._atoms.append(name)
                if name in own:
                    self.watched.name(own, name)
                if is_users or not library.is_between_threads(value) or is_plain(attribute):
                    self._visit(attribute, direct=whole or direct)
        self.watched.puts_back = True
