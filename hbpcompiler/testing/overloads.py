"""Which of an operation's overloads a case is of: the one that takes its tensors and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbpcompiler.rule import Case

KINDS: Mapping[type, tuple[str, ...]] = {
    bool: ("bool", "number"), int: ("int", "number", "float"), float: ("float", "number"), str: ("str",)}
"""How a schema may call the type of such an attribute."""


def overload_of(packet: Any, case: Case, named: str = "") -> Any:
    """The overload of that name, if the operation is named with one; else the first that takes what the case gives,
    "default" before others; where none does, as if nothing were given."""
    names = sorted(packet.overloads(), key=lambda name: name != "default")
    if named:
        names = [named] if named in names else names
    taking = [name for name in names if _takes(getattr(packet, name)._schema, case)]
    return getattr(packet, (taking or names)[0])


def _takes(schema: Any, case: Case) -> bool:
    """Whether an overload has all that the case gives, of these types, and needs nothing else."""
    arguments = {argument.name: argument for argument in schema.arguments}
    given = {**case.shapes, **case.attributes}
    needed = {name for name, argument in arguments.items()
              if not argument.has_default_value() and not str(argument.type).startswith("Optional")}
    return needed <= set(given) <= set(arguments) and all(
        _is_tensor(str(arguments[name].type), shape) for name, shape in case.shapes.items()) and all(
        _is_attribute(str(arguments[name].type), value) for name, value in case.attributes.items())


def _is_tensor(kind: str, shape: Any) -> bool:
    return "Tensor" in kind and ("List" in kind) == isinstance(shape, list)


def _is_attribute(kind: str, value: Any) -> bool:
    """Whether an argument of that type may be such an attribute; true of what no overload is told by."""
    if value is None:
        return True
    if isinstance(value, list | tuple):
        return "List" in kind
    if "Tensor" in kind:
        return False
    kinds = KINDS.get(type(value))
    return kinds is None or kind.removeprefix("Optional[").rstrip("]") in kinds
