"""One fx node as Python text: operators infix, methods as methods, torch functions under their public names."""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._jit_internal import boolean_dispatched

from hbpcompiler.codegen.known_numbers import recognised
from hbpcompiler.codegen.named_arguments import with_names
from hbpcompiler.codegen.torch_calls import written
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.kernels import FALLBACKS
from hbpcompiler.rule.composite import Composite

# Binding strength: an operand that binds less tightly than its place is put in parentheses.
COMPARE, OR, AND, ADD, MULTIPLY, UNARY, POWER, ATOM = range(8)

INFIX: Mapping[Any, tuple[str, int]] = {
    operator.add: ("+", ADD), operator.sub: ("-", ADD), operator.mul: ("*", MULTIPLY),
    operator.truediv: ("/", MULTIPLY), operator.floordiv: ("//", MULTIPLY), operator.mod: ("%", MULTIPLY),
    operator.matmul: ("@", MULTIPLY), operator.pow: ("**", POWER), operator.gt: (">", COMPARE),
    operator.ge: (">=", COMPARE), operator.lt: ("<", COMPARE), operator.le: ("<=", COMPARE),
    operator.eq: ("==", COMPARE), operator.ne: ("!=", COMPARE), operator.and_: ("&", AND),
    operator.or_: ("|", OR),
}
PREFIX: Mapping[Any, str] = {operator.neg: "-", operator.invert: "~"}

Text = tuple[str, int]
Look = Callable[[fx.Node], Text]


@cache
def _public_names() -> Mapping[int, str]:
    """id of a function -> the name users know it by."""
    names = {id(function): f"torch.{name}" for name, function in vars(torch).items()
             if callable(function) and not name.startswith("_")}
    names |= {id(function): f"torch.{name}" for name in dir(torch)
              if not name.startswith("_") and callable(function := getattr(torch, name))}
    for module in (torch.linalg, torch.special, torch.fft):
        names |= {id(function): f"{module.__name__}.{name}" for name, function in vars(module).items()
                  if callable(function) and not name.startswith("_") and id(function) not in names}
    names |= {id(function): f"F.{name}" for name, function in vars(F).items()
              if callable(function) and not name.startswith("_") and id(function) not in names}
    # What both modules have is documented under the second name: F.conv2d.
    names |= {id(function): f"F.{name}" for name, function in vars(F).items()
              if isinstance(function, types.BuiltinFunctionType) and not name.startswith("_")}
    return names | {id(halves["if_true"]): f"F.{function.__name__}" for function, halves in boolean_dispatched.items()}


def function_name(target: Any) -> str:
    """How generated code calls a function."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        return f"torch.ops.{target._qualified_op_name.replace('::', '.')}"
    if isinstance(target, torch._ops.OpOverload):
        packet = function_name(target.overloadpacket)  # of torch's own operations arguments tell the overload
        return packet if target.namespace == "aten" else f"{packet}.{target._overloadname}"
    if target in FALLBACKS or isinstance(target, Composite):
        return str(target.__name__)
    name = _public_names().get(id(target))
    if name is None:  # somebody may have had another in its place when the names were read
        _public_names.cache_clear()
        name = _public_names().get(id(target))
    if name is None:
        raise TypeError(f"a rule calls {target!r}, which has no public name in torch or torch.nn.functional")
    return name


def expression(node: fx.Node, look: Look) -> Text:
    """The text of a node and how tightly it binds; `look` gives the text of the nodes it reads."""

    def show(item: Any, strength: int = COMPARE) -> str:
        if isinstance(item, fx.Node):
            text, binds = look(item)
            return text if binds >= strength else f"({text})"
        if isinstance(item, tuple):
            inside = ", ".join(show(part) for part in item)
            return f"({inside},)" if len(item) == 1 else f"({inside})"
        if isinstance(item, list):
            return "[" + ", ".join(show(part) for part in item) + "]"
        if isinstance(item, float) and (item != item or abs(item) == float("inf")):
            return f'float("{item}")'
        if isinstance(item, float) and (known := recognised(abs(item))):
            text, binds = (known, MULTIPLY) if item > 0 else (f"-({known})", UNARY)
            return text if strength <= binds else f"({text})"
        if isinstance(item, int | float) and item < 0 and strength > UNARY:
            return f"({item!r})"
        if isinstance(item, Composite):
            return item.name
        return quote(item) if isinstance(item, str) else repr(item)

    call = written(node)
    target, args = call.target, call.args
    if target == "reshape" and (spelled := view_of(node)):
        return f"{show(args[0], ATOM)}.{spelled}", ATOM
    if call.op == "call_method":
        call = with_names(call)
        return f"{show(args[0], ATOM)}.{target}({_arguments(call.args[1:], call.kwargs, show)})", ATOM
    if target is operator.add and args[0] == 0 and meta.is_no_tensor(node):
        return look(args[1])  # a sum's first term; a tensor of booleans would become integers
    if target in INFIX:
        sign, strength = INFIX[target]
        # Comparisons would chain, powers group from the right, all others from the left.
        left = show(args[0], strength + (strength in (COMPARE, POWER)))
        right = show(args[1], strength + (strength != POWER))
        return f"{left} {sign} {right}", strength
    if target in PREFIX:
        return PREFIX[target] + show(args[0], UNARY), UNARY
    if target is getattr:
        return f"{show(args[0], ATOM)}.{args[1]}", ATOM
    if target is operator.getitem:
        return f"{show(args[0], ATOM)}[{_index(args[1], show)}]", ATOM
    if target is torch.einsum:
        # TorchScript takes the operands as one list.
        return f"torch.einsum({quote(str(args[0]))}, [{', '.join(show(item) for item in args[1:])}])", ATOM
    call = with_names(call)
    defaults = _defaults(target)
    told = {name: item for name, item in call.kwargs.items() if not (name in defaults and _same(item, defaults[name]))}
    return f"{function_name(target)}({_arguments(call.args, told, show)})", ATOM


def view_of(node: fx.Node) -> str:
    """A reshape that takes one axis apart, or joins some, said so, unflatten(0, (2, 3)); "" for others. Shapes must be
    known."""
    before, after = (_shape(each) for each in (node.args[0], node))
    if not before or not after or before == after:
        return ""
    same = next(at for at, pair in enumerate(zip((*before, ""), (*after, "-"), strict=False)) if pair[0] != pair[1])
    same = min(same, len(before) - 1, len(after) - 1)
    longer, shorter = max(before, after, key=len), min(before, after, key=len)
    ends = len(shorter) - same - 1
    inside = longer[same : len(longer) - ends]
    joined = shorter[same : same + 1]
    if ends < 0 or len(inside) < 2 or longer[len(longer) - ends :] != shorter[same + 1 :]:
        return ""
    if len(before) > len(after):
        last = "" if same and same + len(inside) == len(before) else f", {same + len(inside) - 1}"
        return f"flatten({same}{last})"
    # Only with lengths that the reshape itself states: in a loop inside a loop a chunk's length looks like a number.
    stated = {str(length) for length in _flat(node.args[1:]) if isinstance(length, int)}
    for place, length in enumerate(inside):
        if len(inside) == 2 and length == "1" and "1" in stated and inside[1 - place] == joined[0]:
            return f"unsqueeze({same + place})"
    whole = all(length.isdigit() for length in (*inside, *joined)) and stated.issuperset(inside)
    return f"unflatten({same}, ({', '.join(inside)}))" if whole else ""


def _flat(item: Any) -> list[Any]:
    if isinstance(item, list | tuple):
        return [part for inner in item for part in _flat(inner)]
    return [item]


def _shape(item: Any) -> tuple[str, ...]:
    return tuple(item.meta.get("shape") or ()) if isinstance(item, fx.Node) else ()


@cache
def _defaults(target: Any) -> Mapping[str, Any]:
    """Keyword defaults of a function written in Python: torch records them, readers need not see them."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}


def _same(item: Any, default: Any) -> bool:
    """Whether an argument is a constant that need not be said."""
    plain = item is None or isinstance(item, bool | int | float | str)
    return plain and type(item) is type(default) and bool(item == default)


def quote(text: str) -> str:
    """A text, perhaps from the user's model, as a string literal."""
    known = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    signs = [known.get(sign) or (sign if sign.isprintable() else _escaped(ord(sign))) for sign in text]
    return '"' + "".join(signs) + '"'


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _arguments(args: Any, kwargs: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    texts = [show(item) for item in args] + [f"{name}={_keyword(item, show)}" for name, item in kwargs.items()]
    return ", ".join(texts)


def _keyword(item: Any, show: Callable[[Any], str]) -> str:
    return str(item) if isinstance(item, torch.dtype) else show(item)


def _index(item: Any, show: Callable[[Any], str]) -> str:
    if isinstance(item, tuple):
        return ", ".join(_index(part, show) for part in item)
    if isinstance(item, slice):
        parts = ["" if part is None else show(part) for part in (item.start, item.stop)]
        return ":".join(parts) + (f":{show(item.step)}" if item.step is not None else "")
    if item is Ellipsis:
        return "..."
    return show(item)
