"""What code may read, by the names in it: of itself, of a class's attributes, of modules that users do not write."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from hbpcompiler.guards.atoms import atom


def names_in(code: types.CodeType) -> Iterator[str]:
    """All names that code, and functions written in it, may read, and its texts, which getattr may read by."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, types.CodeType):
            yield from names_in(constant)


def function_behind(attribute: Any) -> Any:
    """The function of a class's method or property; of all else the attribute itself."""
    if isinstance(attribute, functools.cached_property):
        return attribute.func
    return getattr(attribute, "__func__", None) or getattr(attribute, "fget", None) or attribute


def read_of_library(module: types.ModuleType, names: set[str],
                    met: set[int] | None = None) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(module's dict, name, value) of what code with these names may read of an installed module, such as F.relu or
    torch.nn.functional.relu: until another takes its place. Not objects that are replaced as a matter of course
    (sys.stderr), nor modules that fill themselves (torch.ops)."""
    met = set() if met is None else met
    met.add(id(module))
    held = vars(module)
    for name in sorted(names & held.keys()) if type(module) is types.ModuleType else ():
        value = held[name]
        if isinstance(value, types.ModuleType):
            if id(value) not in met:
                yield from read_of_library(value, names, met)
        elif callable(value) or atom(value) is not None:
            yield held, name, value
