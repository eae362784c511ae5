"""What an operation that changes its first argument is when it changes nothing: relu of relu_."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import Node, map_arg
from torch.utils import _pytree as pytree

from hbpcompiler.rules.shared.filled_diagonal import OWN


def functional_form(called: Any) -> Any:
    """relu of relu_, with the same arguments; None if there is none, or if more than the first is changed."""
    if called in OWN:
        return OWN[called]
    schema = called._schema
    name, overload = schema.name.removeprefix("aten::"), schema.overload_name or "default"
    changed = [argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if not name.endswith("_") or changed != [schema.arguments[0].name] or called.namespace != "aten":
        return None
    form = getattr(getattr(torch.ops.aten, name[:-1], None), overload, None)
    if form is None or _parameters(form) != _parameters(called):
        return None
    return form


def _parameters(called: Any) -> list[tuple[str, str]]:
    """Types of an operation's arguments, and names of all but the first, which is self or input."""
    arguments = called._schema.arguments
    return [(argument.name if place else "", str(argument.type)) for place, argument in enumerate(arguments)]


def keeps_dtype(node: Node, form: Any) -> bool:
    """Whether the functional form's result has the dtype of the changed tensor, which in place it keeps: h.gt_(0) are
    numbers, h.gt(0) is not."""
    given: Any = map_arg((node.args, node.kwargs), lambda read: read.meta["val"])
    arguments, named = given
    with detect_fake_mode(pytree.tree_leaves((arguments, named))) or nullcontext():
        result = form(*arguments, **named)
    return isinstance(result, Tensor) and result.dtype == node.meta["val"].dtype == arguments[0].dtype
