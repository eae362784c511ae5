"""Bases in which squares are taken: of a parameter A and B, or B alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.errors import InputError, InputTypeError, listing

from .argument import FLOATING, Call, Sizes, listed


def check_bases(value: Any, call: Call) -> dict[str, Tensor]:
    """By parameter name something with A and B; of both one dict, {"0.weight.A": ..., "0.weight.B": ...}."""
    if not isinstance(value, Mapping):
        raise InputTypeError("bases must be a dict from parameter name to what has eigenvectors A and B, as a result's "
                             f"ekfac is, not {type(value).__name__}")
    findings, found = [], {}
    for key, pair in value.items():
        sides = {side: getattr(pair, side, None) for side in ("A", "B")}
        if sides["B"] is None:
            findings.append(f"that of {key!r} is {type(pair).__name__}, which has no B")
        for side, basis in sides.items():
            if basis is None:
                continue
            if not isinstance(basis, Tensor) or basis.dtype not in FLOATING:
                findings.append(f"{side} of {key!r} is no tensor of floating-point numbers but "
                                f"{basis.dtype if isinstance(basis, Tensor) else type(basis).__name__}")
            elif basis.device != call.device:
                findings.append(f"{side} of {key!r} is on {basis.device}, and the batch on {call.device}")
            else:
                found[f"{key}.{side}"] = basis.detach()
    if findings:
        raise InputError(listing("bases does not fit:", findings))
    return found


def fitting_bases(value: Mapping[str, Tensor], sizes: Sizes) -> list[str]:
    """What is wrong with the names and shapes of bases: of one parameter "A" and "B", or "B" alone."""
    found = []
    for name in {**sizes, **value}:
        (key, side), wanted = name.rsplit(".", 1), sizes.get(name)
        own = None if name not in value else list(value[name].shape)
        if wanted is None:
            known = f"{key}.B" in sizes
            found.append(f"there is no {side} of {key!r}, which " + ("meets no input features" if known else
                         f"has none here; there are those of {listed(_parameters_of(sizes))}"))
        elif own is None:
            found.append(f"{side} of {key!r} is missing, {list(wanted)}")
        elif own != list(wanted):
            found.append(f"{side} of {key!r} has shape {own} instead of {list(wanted)}")
    return found


def _parameters_of(sizes: Sizes) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[0] for name in sizes))


def own_bases(samples: int, state: Mapping[str, Tensor], sizes: Sizes, vectors: int) -> dict[str, Tensor]:
    """Those in which everything is what it is."""
    like = next(tensor for tensor in state.values() if tensor.is_floating_point())
    return {name: torch.eye(shape[-1], dtype=like.dtype, device=like.device).expand(shape)
            for name, shape in sizes.items()}
