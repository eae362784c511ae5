"""Calls of torch's operations as people write them: x > 0 and x.sum() for torch.ops.aten.gt and aten.sum, no defaults.

Operations reach a program under the names of torch.ops where no rule says how they are computed.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from hbpcompiler.rules.shared.torch_operations import OPERATORS

IDLE = {"pin_memory": False}
"""Arguments that say nothing though torch's schemas have another default."""
SAID = ("reduction",)
"""Arguments that torch's own functions have another default of than the schemas say: without it, in Python,
torch.binary_cross_entropy_with_logits does not reduce."""


@dataclass(frozen=True)
class Written:
    """How a node is written, in the terms of fx."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def written(node: fx.Node) -> Written:
    """An operator, a method, or a function of torch if there is one that does the same; arguments that are what they
    are by default are left out."""
    packet = node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return Written(node.op, node.target, *_told(node, _of_torch(node)))
    if isinstance(node.target, torch._ops.OpOverload) and not _is_of_aten(packet) and _is_one_of_several(
            node, node.target):
        return Written(node.op, node.target, node.args, node.kwargs)
    args, kwargs = _told(node, packet, places=True)
    if (sign := _operator(packet, args, kwargs)) is not None:
        return Written("call_function", sign, args, {})
    name = packet.__name__
    lists = [item for item in (*args, *kwargs.values()) if isinstance(item, list | tuple)]
    gaps = any(item is None for given in lists for item in given)  # whole axes beside indices: Python takes none there
    if not _is_of_aten(packet) or name.startswith("_") or gaps:
        return Written("call_function", packet, args, kwargs)
    if _is_method(packet, args):
        return Written("call_method", name, args, kwargs)
    function = getattr(torch, name, None)
    is_public = isinstance(function, types.BuiltinFunctionType)
    return Written("call_function", function if is_public else packet, args, kwargs)


def _is_of_aten(packet: Any) -> bool:
    return bool(packet._qualified_op_name.startswith("aten::"))


def _is_one_of_several(node: fx.Node, overload: torch._ops.OpOverload) -> bool:
    """Whether other overloads may be meant, wherever arguments get their names: torch would take the first that fits,
    and the user's overloads may be any functions."""
    packet, names = overload.overloadpacket, [argument.name for argument in overload._schema.arguments]
    return any(len(list(fitting(packet, node.args[:at], {**dict(zip(names[at:], node.args[at:], strict=False)),
                                                         **node.kwargs}))) > 1 for at in range(len(node.args) + 1))


def _operator(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The operator that does the same, of tensors and numbers; booleans are none to TorchScript."""
    sign = OPERATORS.get(packet)
    operands = 1 if sign in (operator.neg, operator.invert) else 2
    plain = all(isinstance(item, fx.Node) or type(item) in (int, float) for item in args)
    return sign if plain and not kwargs and len(args) == operands else None


def _is_method(packet: Any, args: tuple[Any, ...]) -> bool:
    """Whether tensors have it, and the node calls it with one."""
    of_tensors = all(schema.arguments and schema.arguments[0].name == "self" for schema in _schemas(packet))
    own = getattr(torch.Tensor, packet.__name__, None)
    return (of_tensors and bool(args) and isinstance(args[0], fx.Node)
            and isinstance(own, types.MethodDescriptorType))


def _of_torch(node: fx.Node) -> Any:
    """The operation behind a method, or a function of torch that is not written in Python; None if it is another."""
    if node.op == "call_method":
        name = str(node.target)
        is_torchs = isinstance(getattr(torch.Tensor, name, None), types.MethodDescriptorType)
        return getattr(torch.ops.aten, name, None) if is_torchs else None
    if isinstance(node.target, types.BuiltinFunctionType) and getattr(node.target, "__module__", None) != "_operator":
        return getattr(torch.ops.aten, node.target.__name__, None)
    return None


def _told(node: fx.Node, packet: Any, places: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that have to be said. Rules' own numbers stay unless `places`: which axis, even if it is usual."""
    args, kwargs = node.args, dict(node.kwargs)
    meant = list(fitting(packet, args, kwargs))
    for name in reversed(list(kwargs)):
        fewer = {other: item for other, item in kwargs.items() if other != name}
        if (_is_default(kwargs[name], [_argument(schema, name) for schema in meant])
                and list(fitting(packet, args, fewer)) == meant):
            kwargs = fewer
    while args and (not kwargs or args[-1] is None) and (places or args[-1] is None or args[-1] is False):
        last = len(args) - 1
        if not (_is_default(args[-1], [schema.arguments[last] for schema in meant])
                and list(fitting(packet, args[:-1], kwargs)) == meant):
            break
        args = args[:-1]
    return args, kwargs


def _is_default(item: Any, arguments: list[Any]) -> bool:
    plain = item is None or isinstance(item, bool | int | float | str | list | tuple)
    if not arguments or not plain or _has_nodes(item):
        return False
    return all(argument.has_default_value() and argument.name not in SAID and _same(argument, item)
               for argument in arguments)


def _same(argument: Any, item: Any) -> bool:
    default = argument.default_value
    if argument.name in IDLE and default is None:
        return item is None or item == IDLE[argument.name]
    if isinstance(item, list | tuple):
        return isinstance(default, list) and list(item) == default
    return type(item) is type(default) and bool(item == default)


def _has_nodes(item: Any) -> bool:
    return isinstance(item, list | tuple) and any(isinstance(part, fx.Node) or _has_nodes(part) for part in item)


def _argument(schema: Any, name: str) -> Any:
    return next(argument for argument in schema.arguments if argument.name == name)


def fitting(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The overloads that may be meant, by the numbers and names of their arguments."""
    for schema in () if packet is None else _schemas(packet):
        own = [argument for argument in schema.arguments if not argument.kwarg_only]
        left = [argument for argument in schema.arguments[len(args):] if argument.name not in kwargs]
        names = {argument.name for argument in schema.arguments[len(args):]}
        if len(args) <= len(own) and names.issuperset(kwargs) and all(each.has_default_value() for each in left):
            yield schema


@cache
def _schemas(packet: Any) -> tuple[Any, ...]:
    """Of the overloads for tensors, without those that write into a given one or name axes by words."""
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return ()
    found = [getattr(packet, name)._schema for name in packet.overloads()]
    return tuple(schema for schema in found if "Tensor" in str(schema) and "Dimname" not in str(schema)
                 and not any(argument.is_out for argument in schema.arguments))
