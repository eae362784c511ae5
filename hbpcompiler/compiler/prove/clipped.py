"""verify="full" of clipped gradients and norms: a loop over the samples' shares of the gradient, made by autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler import clipping
from hbpcompiler.arguments import MAX_NORM, MAX_NORMS
from hbpcompiler.compiler.prove.candidate import Candidate
from hbpcompiler.compiler.prove.comparison import Key

CLIPPED, NORMS = "clipped_grad", "norms"
NAMES = (CLIPPED, NORMS)


def clipped_of(raw: Any, candidate: Candidate) -> dict[Key, Tensor]:
    """What a program's result has of them; norms that are all parameters' have no parameter's name."""
    found: dict[Key, Tensor] = {}
    for quantity in [name for name in NAMES if name in candidate.options.quantities]:
        value = getattr(raw, quantity)
        found |= {(quantity, name): each for name, each in (value if isinstance(value, dict) else {"": value}).items()}
    return found


def clipped_by_hand(shares: Mapping[str, Tensor], candidate: Candidate) -> dict[Key, Tensor]:
    """The same of the samples' shares of the gradient, [N, *theta]."""
    options = candidate.options
    names = [value.key for value in candidate.matched.trainable if options.chosen.asks(NORMS, value.key)]
    mean = candidate.matched.ending.kind == "mean"
    each = {name: shares[name] * (len(shares[name]) if mean else 1) for name in names}
    bounds = candidate.beside.get(MAX_NORMS) or dict.fromkeys(names, candidate.beside.get(MAX_NORM))
    right: dict[Key, Tensor] = {}
    for group, members in clipping.groups(options.clipping, names).items():
        samples = range(len(each[members[0]]))
        rows = torch.stack([torch.cat([each[name][n].flatten() for name in members]).norm() for n in samples])
        right[NORMS, "" if group == clipping.ALL else group] = rows
        for name in members if CLIPPED in options.quantities else ():
            right[CLIPPED, name] = sum((_weight(options.clipping, norm, bounds[name]) * gradient
                                        for norm, gradient in zip(rows, each[name], strict=True)),
                                       torch.zeros_like(each[name][0]))
    return right


def _weight(style: str, norm: Tensor, bound: Any) -> Any:
    """C_n, written apart from what the program does (see `clipping`)."""
    if style == clipping.AUTOMATIC:
        return bound / (norm + clipping.STABILITY)
    if style == clipping.OPACUS:
        return min(1.0, float(bound / (norm + clipping.ROUNDED_UP)))
    return 1.0 if norm <= bound else bound / norm
