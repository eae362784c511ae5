"""The part of a walk that follows code: of functions their code, defaults, cells, and the globals that it names."""

from __future__ import annotations

import builtins
import os
import types
from abc import ABC, abstractmethod
from collections.abc import Set
from typing import Any

from hbpcompiler.guards import library, read_by_code
from hbpcompiler.guards.atoms import Same, is_own, of_library
from hbpcompiler.guards.watched import Watched

PYTHONS_OWN = frozenset(vars(builtins))
"""Names that all code has."""


class CodeWalk(ABC):
    """What code reads is visited, and watched where it lies."""

    def __init__(self) -> None:
        self.watched = Watched()
        self._atoms: list[Any] = []
        self._names: set[str] = {"forward"}
        self._methods: dict[str, list[Any]] = {}

    @abstractmethod
    def _visit(self, value: Any, direct: bool = True) -> None:
        """Anything that code reads."""

    @abstractmethod
    def _visit_all(self, *held: Any) -> None:
        """The elements of containers."""

    def _function(self, function: types.FunctionType) -> None:
        self.watched.function(function)
        modules: list[types.ModuleType] = []
        for value in (function.__defaults__, function.__kwdefaults__, function.__dict__):
            if value:
                self._visit_all(value)
        for cell in function.__closure__ or ():
            try:
                self.watched.cell(cell)
            except ValueError:
                self.watched.empty_cell(cell)
                continue
            if isinstance(cell.cell_contents, types.ModuleType):
                modules.append(cell.cell_contents)
            else:
                self._visit(cell.cell_contents)
        code = function.__code__
        if of_library(function.__module__ or "") and not is_own(code.co_filename):
            return
        names = set(read_by_code.names_in(code))
        self._learn(names)
        if is_own(code.co_filename):
            if not function.__dict__:
                self.watched.keys(function.__dict__)
            self._globals(function.__globals__, names)
            asked = read_by_code.asked_for(names, read_by_code.ASKING_GLOBALS)
            loaded = set(read_by_code.loaded_in(code)) - PYTHONS_OWN
            self._missing(function.__globals__, asked | loaded)
            self._put_in_builtins(loaded - function.__globals__.keys())
            for module in modules:
                self._module_read(module, names)

    def _learn(self, names: set[str]) -> None:
        """Names that code met on the way may read attributes or call methods by."""
        for name in sorted(names - self._names):
            self._names.add(name)
            for function in self._methods.pop(name, ()):
                self._visit(function)

    def _globals(self, held: dict[str, Any], names: set[str], met: frozenset[int] = frozenset()) -> None:
        """What code may read of a file's globals, and of the modules among them; `met` are those that it is one of."""
        if library.reads_switches(names):
            self._visit(os.environ)
        met |= {id(held)}
        for name in sorted(names & held.keys()):
            value = held[name]
            self._atoms.append(name)
            self.watched.name(held, name)
            if isinstance(value, types.ModuleType):
                self._module_read(value, names, met)
            else:
                self._visit(value)
        self._missing(held, names & vars(builtins).keys())  # Python's own, until a global of that name is made

    def _put_in_builtins(self, names: Set[str]) -> None:
        """What is no global, but may be put among Python's own names, as gettext's _ is."""
        for name in sorted(names):
            self.watched.name_of_library(vars(builtins), name)
            if name in vars(builtins):
                self._atoms.append(name)
                self._visit(vars(builtins)[name])

    def _missing(self, held: dict[str, Any], names: Set[str]) -> None:
        """What code may look for in vain, until it is there."""
        for name in sorted(names - held.keys()):
            self.watched.name(held, name)

    def _module_read(self, module: types.ModuleType, names: set[str], met: frozenset[int] = frozenset()) -> None:
        self._atoms.append(Same(module))
        if id(vars(module)) in met:  # modules that import each other
            return
        if not of_library(module.__name__) and is_own(str(vars(module).get("__file__") or "")):
            self._globals(vars(module), names, met)
            answers = "__getattr__" in vars(module)  # what it answers for, until there is an entry of that name
            asked = names if answers else read_by_code.asked_for(names, read_by_code.ASKING_MODULES)
            self._missing(vars(module), asked)
        else:
            for held, name, value in read_by_code.read_of_library(module, names):
                self._atoms.append((name, Same(value)))
                self.watched.name_of_library(held, name)
            for name, reader in read_by_code.switches_of_library(module, names):
                self._atoms.append((name, self.watched.answer(reader)))
