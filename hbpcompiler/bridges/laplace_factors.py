"""Kronecker factors as Laplace's `Kron` has them: lists by parameter, to be added factor by factor over batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import hbpcompiler as hbp
from hbpcompiler.accumulate.weigh import positions_of
from hbpcompiler.errors import listing
from hbpcompiler.values import INPUTS_FIRST


class NoPairError(Exception):
    """Why a parameter's block is not kron of a matrix for its first axis and one for all others."""


def factors_of(values: Mapping[str, Any], compiled: hbp.Compiled, parameters: Mapping[str, Tensor], samples: int,
               whole: int) -> list[list[Tensor]]:
    """For each of these parameters, for a sum loss: [B, A] of a weight, [B] of a bias, of a batch of `samples` out of
    `whole`.

    B, of the weight's first axis, is a sum over samples and positions, A a mean over both, times samples / whole: so
    both may be added up over batches. Raises InputError that lists the parameters without such a pair.
    """
    positions = positions_of(compiled._current())
    stored = getattr(values, "stored", {})
    found, findings = [], []
    for name, parameter in parameters.items():
        try:
            if name in values:
                own = values[name]
                inputs_first = stored[name].layout == INPUTS_FIRST
                found.append(_pair(own.A, own.B, parameter, inputs_first, positions.get(name, 1), samples, whole))
            else:
                found.append(_zeros(parameter))
        except NoPairError as error:
            findings.append(f"{name} {list(parameter.shape)}: {error}")
    if findings:
        raise hbp.InputError(listing(
            "laplace-torch's Kron has two factors for each weight, one for its first axis and one for all others; "
            "these have none:", findings, "Use hessian_structure=\"diag\" or \"full\", or freeze them "
            "(requires_grad_(False)) before Laplace is made"))
    return found


def _pair(A: Tensor | None, B: Tensor, parameter: Tensor, inputs_first: bool, positions: int, samples: int,
          whole: int) -> list[Tensor]:
    if B.dim() > 2:
        raise NoPairError(f"it has {len(B)} groups, and a pair of factors for each")
    if parameter.dim() < 2:
        return [B if A is None else torch.kron(B, A)]
    if A is None:
        raise NoPairError("it is no layer's weight, and has one block of "
                          f"{parameter.numel()} x {parameter.numel()}")
    if parameter.numel() == 1:
        return [A * B]
    mean, summed = A / positions, B * positions
    first, rest = len(parameter), math.prod(parameter.shape[1:])
    if inputs_first and (len(A), len(B)) == (first, rest):
        return [mean * samples, summed / whole]
    if (len(B), len(A)) == (first, rest):
        return [summed, mean * (samples / whole)]
    raise NoPairError(f"its factors are of {len(B)} outputs and {len(A)} inputs")


def _zeros(parameter: Tensor) -> list[Tensor]:
    """Of a parameter that does not influence the output."""
    if parameter.dim() < 2 or parameter.numel() == 1:
        return [parameter.new_zeros(parameter.numel(), parameter.numel())]
    return [parameter.new_zeros(size, size) for size in (len(parameter), math.prod(parameter.shape[1:]))]
