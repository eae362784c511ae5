"""Which operations let no derivative through, as torch itself has it: detach, argmax, ones_like, a comparison."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.trace.graph import SAMPLES, Value, meta
from hbpcompiler.compiler.trace.numbers import arithmetic, depends_on_batch

_KNOWN: dict[Any, bool] = {}


def stops(called: Any, tensors: Mapping[str, Value], attributes: Mapping[str, Any], index: int) -> bool:
    """Whether the result of this call has no derivative in any of its tensors.

    `called` is the OpOverload. It is carried out once on tensors without memory that require a gradient; what cannot
    be, or is no operation of torch's own, counts as one that lets derivatives through.
    """
    if called.namespace != "aten" or not any(value.differentiable for value in tensors.values()):
        return False
    key = (called, index, tuple((slot, value.dtype) for slot, value in tensors.items()), repr(attributes))
    if key not in _KNOWN:
        _KNOWN[key] = _found(called, tensors, attributes, index)
    return _KNOWN[key]


def _found(called: Any, tensors: Mapping[str, Value], attributes: Mapping[str, Any], index: int) -> bool:
    def argument(item: Any) -> Any:
        if isinstance(item, list):
            return [argument(part) for part in item]
        if isinstance(item, str) and item in tensors:
            return meta(tensors[item]).requires_grad_(tensors[item].differentiable)
        return arithmetic(item, SAMPLES) if depends_on_batch(item) else item

    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    try:
        for entry in called._schema.arguments:
            item = argument(entry.name if entry.name in tensors else attributes[entry.name])
            if entry.kwarg_only:
                keywords[entry.name] = item
            else:
                positional.append(item)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = called(*positional, **keywords)
    except Exception:
        return False  # it is not known
    own = result[index] if isinstance(result, list | tuple) else result
    return isinstance(own, Tensor) and not own.requires_grad
