"""What code may read, by the names in it: of itself, of a class's attributes, of modules that users do not write."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from hbpcompiler.guards.atoms import NOT_RUN, atom, of_library

_ANSWERING: tuple[Callable[[], Any], ...] = (
    torch.are_deterministic_algorithms_enabled, torch.is_deterministic_algorithms_warn_only_enabled,
    torch.get_deterministic_debug_mode, torch.get_float32_matmul_precision, torch.get_num_threads,
    torch.get_num_interop_threads,
)
"""Functions that say how a switch stands."""
ASKING_MODULES = frozenset({"getattr", "hasattr", "vars", "__dict__", "AttributeError", "Exception"})
"""By whom code may meet an attribute that is missing, and go on."""
ASKING_GLOBALS = frozenset({"globals"})


def names_in(code: types.CodeType) -> Iterator[str]:
    """All names that code, and functions written in it, may read, and its texts, which getattr may read by."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from names_in(constant)


def loaded_in(code: types.CodeType) -> Iterator[str]:
    """Names of globals, and of Python's own, that code and functions written in it use: some may be missing where
    that is tried."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from loaded_in(constant)


def asked_for(names: set[str], asking: frozenset[str]) -> frozenset[str]:
    """Those of the names in code by which it may ask whether something is there, if it names one that asks."""
    return frozenset(name for name in names if name.isidentifier()) if names & asking else frozenset()


def function_behind(attribute: Any) -> Any:
    """The function of a class's method or property; of all else the attribute itself."""
    if isinstance(attribute, functools.cached_property):
        return attribute.func
    return getattr(attribute, "__func__", None) or getattr(attribute, "fget", None) or attribute


def names_with_methods(kind: type, names: set[str]) -> set[str]:
    """These, and those in the code of methods of Python's and torch's classes that they name, or that those name:
    get_last_lr() of a scheduler reads _last_lr."""
    found, left = set(names), [*names, *_called_by_signs(kind)]
    while left:
        name = left.pop()
        base = next((base for base in kind.__mro__ if name in base.__dict__), object)
        function = function_behind(base.__dict__.get(name))
        if isinstance(function, types.FunctionType) and of_library(base.__module__):
            new = set(names_in(function.__code__)) - found
            found |= new
            left += new
    return found


def _called_by_signs(kind: type) -> Iterator[str]:
    """Methods of Python's and torch's classes that code calls without their names: item[0], len(item), item()."""
    for base in kind.__mro__:
        if of_library(base.__module__):
            yield from (name for name in base.__dict__ if name.startswith("__") and name not in NOT_RUN)


def modules_read(module: types.ModuleType, names: set[str], met: set[int] | None = None) -> Iterator[types.ModuleType]:
    """This module and those that code with these names may read in it, as torch.nn.functional of torch. Not modules
    that fill themselves (torch.ops)."""
    met = set() if met is None else met
    met.add(id(module))
    yield module
    for name in sorted(names & vars(module).keys()):
        value = vars(module)[name]
        if type(value) is types.ModuleType and id(value) not in met:
            yield from modules_read(value, names, met)


def read_of_library(module: types.ModuleType, names: set[str]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(module's dict, name, value) of what code with these names may read of an installed module, such as F.relu:
    until another takes its place. Not objects that are replaced as a matter of course (sys.stderr)."""
    for own in modules_read(module, names):
        held = vars(own)
        for name in sorted(names & held.keys()):
            if callable(held[name]) or atom(held[name]) is not None:
                yield held, name, held[name]


def switches_of_library(module: types.ModuleType, names: set[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, what reads it) of torch's own switches that code with these names may read: torch.get_num_threads(),
    torch.backends.cudnn.benchmark."""
    for own in modules_read(module, names):
        if _holds_switches(own):
            yield from _switches(own, names, set())
        for name in sorted(names & vars(own).keys()):
            value = vars(own)[name]
            if any(value is answering for answering in _ANSWERING):
                yield name, value
            elif _holds_switches(value):
                yield from _switches(value, names, set())


def _switches(holder: Any, names: set[str], met: set[int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    met.add(id(holder))
    for name in sorted(names):
        if not hasattr(holder, name):
            continue
        value = getattr(holder, name)
        if atom(value) is not None:
            yield name, functools.partial(getattr, holder, name)
        elif _holds_switches(value) and id(value) not in met:
            yield from _switches(value, names, met)


def _holds_switches(value: Any) -> bool:
    """Whether it is torch.backends, or one of its parts: modules of classes of their own, and objects."""
    name = value.__name__ if isinstance(value, types.ModuleType) else type(value).__module__
    return name.startswith("torch.backends")
