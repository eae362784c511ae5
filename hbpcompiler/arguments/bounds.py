"""Bounds of norms: one number, or one for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError, listing

from .argument import Call, shown


def check_max_norm(value: Any, call: Call) -> float:
    """A positive, finite number, or a tensor of one."""
    if isinstance(value, Mapping):
        raise InputTypeError("max_norm is one number where norms are over all parameters together; a dict of them is "
                             "for hbp.compile(..., clipping='per_parameter')")
    number = _number(value)
    if number is None:
        raise InputTypeError(f"max_norm must be a positive number, or a tensor of one, not {shown(value)}")
    if not 0 < number < float("inf"):
        raise InputError(f"max_norm must be a positive, finite number, not {number}")
    return number


def check_max_norms(value: Any, call: Call) -> dict[str, float]:
    """One such number for all parameters, or a dict of them by the parameters' names."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(call.clipped, check_max_norm(value, call))
    strangers = [f"{name!r} is no parameter of the model" for name in value if name not in call.parameters]
    missing = [f"{name!r} has none" for name in call.clipped if name not in value]
    numbers = {name: _number(given) for name, given in value.items()}
    wrong = [f"that of {name!r} is {shown(value[name])}" for name, number in numbers.items()
             if number is None or not 0 < number < float("inf")]
    if findings := [*strangers, *missing, *wrong]:
        raise InputError(listing("max_norm must be one positive, finite number, or a dict of them by parameter name:",
                                 findings))
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    """A number, or the one in a tensor; None for all else, flags among it."""
    if isinstance(value, Tensor):
        plain = value.dim() == 0 and not value.is_complex() and value.dtype is not torch.bool
        return float(value) if plain else None
    if isinstance(value, bool):
        return None
    return float(value) if isinstance(value, Real) else None
