"""Numbers in calls with their names: spread_by_index(S_words, x, rows=10), where 10 alone would not say what it is.

Of a kernel of torch.ops and of a file's own helpers all arguments from the first number, list of numbers, True, False
or None on have names; of torch's public functions where there are two such, or five arguments. Methods and what has
one number say it in place, as people write them: x.sum(1), torch.softmax(x, 1). Only True and False always have a name:
keepdim=True.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from hbpcompiler.codegen.torch_calls import Written, fitting
from hbpcompiler.compiler.program.kernels import FALLBACKS

SEVERAL, MANY = 2, 5
"""So many numbers, or arguments, of a public function's call have names."""


def with_names(call: Written) -> Written:
    """The call with its numbers named where that tells more."""
    names = _names(call)
    first = _first_to_name(call, names)
    if first is None or any(keyword.iskeyword(name) or name in call.kwargs for name in names[first:]):
        return call
    said = zip(names[first:], call.args[first:], strict=True)
    return replace(call, args=call.args[:first], kwargs={**dict(said), **call.kwargs})


def _first_to_name(call: Written, names: Sequence[str]) -> int | None:
    """The position from which on arguments are named; None for none."""
    bare = [at for at, item in enumerate(call.args) if at and _is_bare(item)] if names else []
    flags = [at for at in bare if isinstance(call.args[at], bool)]
    of_method = call.op == "call_method"
    kernel = isinstance(call.target, torch._ops.OpOverloadPacket | torch._ops.OpOverload) or call.target in FALLBACKS
    at_the_end = len(bare) >= SEVERAL and bare == list(range(bare[0], len(call.args)))
    named = bare if not of_method and (kernel or at_the_end or len(call.args) >= MANY) else flags
    return named[0] if named else None


def _is_bare(item: Any) -> bool:
    """Whether nobody sees what it is: a number, a list of some, or an argument that is switched off."""
    if isinstance(item, list | tuple):
        return not any(isinstance(part, fx.Node) and "shape" in part.meta for part in item)
    return item is None or isinstance(item, bool | int | float)


def _names(call: Written) -> Sequence[str]:
    """Of the arguments given by position; none where it is not known, or not the same for all that may be meant."""
    packet = call.target
    if isinstance(packet, torch._ops.OpOverload):
        return tuple(argument.name for argument in packet._schema.arguments)[: len(call.args)]
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        written_in_python = () if call.op == "call_method" else _of_signature(call.target)
        if written_in_python:
            return written_in_python[: len(call.args)]
        name = str(call.target) if call.op == "call_method" else getattr(call.target, "__name__", "")
        packet = getattr(torch.ops.aten, name, None)
    found = {tuple(argument.name for argument in schema.arguments)[: len(call.args)]
             for schema in fitting(packet, call.args, call.kwargs)}
    return found.pop() if len(found) == 1 else ()


@lru_cache(maxsize=512)
def _of_signature(function: Any) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    named = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    return tuple(named) if len(named) == len(parameters) else ()
