"""The references that a rule is compared with, by brute force: torch's own derivatives, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.testing.setting import Setting


def pull_back(setting: Setting, name: str, columns: Tensor, index: int | None = None) -> Tensor:
    """Brute force: one backward pass per sample and column; what the argument receives from that sample alone."""
    value = setting.tensor(name, index).clone().requires_grad_()
    output = setting.reference(setting.replaced(name, index, value))
    results = []
    for n in range(columns.shape[0]):
        for k in range(columns.shape[1]):
            grad = torch.zeros_like(value)  # one result of several need not depend on every input
            if output.requires_grad:
                (grad,) = torch.autograd.grad(output[n], value, columns[n, k], retain_graph=True)
            results.append(grad[n] if setting.batched(name, index) else grad)
    return torch.stack(results).unflatten(0, columns.shape[:2])


def hessian(setting: Setting, names: list[str], scalar: Callable[[Tensor, int], Tensor],
            across_kinks: bool = True) -> Tensor:
    """Brute force: the Hessian of each sample's scalar in that sample's slices of the named inputs, joined.

    By differences where torch has no second derivatives, or NaN where those are not to be taken, `across_kinks`.
    """
    matrices = []
    inputs = setting.inputs(names)
    for n in range(setting.samples):
        wholes = [setting.tensor(*at) for at in inputs]
        parts = [whole[n] if setting.batched(*at) else whole for at, whole in zip(inputs, wholes, strict=True)]
        sizes = [part.numel() for part in parts]

        def function(flat: Tensor, n: int = n, parts: list[Tensor] = parts, sizes: list[int] = sizes,
                     wholes: list[Tensor] = wholes) -> Tensor:
            changed: dict[str, Any] = {}
            for (name, i), whole, part, piece in zip(inputs, wholes, parts, flat.split(sizes), strict=True):
                value = piece.view_as(part)
                if setting.batched(name, i):
                    value = torch.cat([whole[:n], value[None], whole[n + 1 :]])
                if i is None:
                    changed[name] = value
                else:
                    changed.setdefault(name, list(setting.arguments[name]))[i] = value
            return scalar(setting.reference(changed), n)

        flat = torch.cat([part.flatten() for part in parts])
        try:
            matrices.append(torch.autograd.functional.hessian(function, flat))
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            missing = flat.new_full((len(flat), len(flat)), math.nan)
            matrices.append(differences(function, flat) if across_kinks else missing)
    return torch.stack(matrices)


def differences(function: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    """Differences of gradients, for operations that torch differentiates once only (they are piecewise linear)."""
    steps = 1e-6 * torch.eye(len(flat), dtype=flat.dtype)
    gradient = torch.func.grad(function)
    return torch.stack([(gradient(flat + step) - gradient(flat - step)) / 2e-6 for step in steps])


def moved(setting: Setting, name: str, index: int | None, direction: Tensor) -> Tensor:
    """The derivative in a direction; by differences where torch has no forward mode (grid_sample, fused attention)."""
    value = setting.tensor(name, index)

    def function(value: Tensor) -> Tensor:
        return setting.reference(setting.replaced(name, index, value))

    try:
        if not setting.forward_mode:  # a registered operation has a backward pass only
            result: Tensor = torch.autograd.functional.jvp(function, (value,), (direction,))[1]
            return result
        return torch.func.jvp(function, (value,), (direction,))[1]
    except NotImplementedError:
        near, far = (function(value + step * direction) - function(value - step * direction) for step in (3e-4, 6e-4))
        return (8 * near - far) / (12 * 3e-4)  # of fourth order
