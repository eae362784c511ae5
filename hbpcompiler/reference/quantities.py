"""Quantities of single parameters, per-sample gradients and blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .forward import Forward, Inputs, Loss


def reference(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, quantity: str, *, seed: int = 0
) -> dict[str, Tensor]:
    """One quantity for every trainable parameter, by name: grad, batch_grad, batch_l2, batch_inner, second_moment,
    variance, diag_ggn, diag_h, trace_ggn or trace_h; ValueError for any other, and for all but grad and diag_h where
    the loss depends on a parameter beside the model's output. `seed` fixes the random draws (dropout) of the one
    forward pass. A loss that is `Weighted` weighs the samples, here and below."""
    run = Forward(model, loss, inputs, target, seed)
    functions: dict[str, Callable[[str], Tensor]] = {
        "grad": run.grad,
        "batch_grad": run.batch_grad,
        "batch_l2": lambda name: run.batch_grad(name).reshape(run.batch, -1).square().sum(1),
        "batch_inner": lambda name: run.batch_grad(name).reshape(run.batch, -1) @ run.grad(name).flatten(),
        "second_moment": run.second_moment,
        "variance": run.variance,
        "diag_ggn": run.diag_ggn,
        "diag_h": run.diag_h,
        "trace_ggn": lambda name: run.diag_ggn(name).sum(),
        "trace_h": lambda name: run.diag_h(name).sum(),
    }
    if quantity not in functions:
        raise ValueError(f"there is no reference for {quantity!r}; there is one for {', '.join(functions)}")
    return {name: functions[quantity](name) for name in run.parameters}


def clipped_grad(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, max_norm: float | Mapping[str, float],
    style: str = "flat", *, parameters: Sequence[str] | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """sum_n C_n g_n and the norms |g_n|, [N], of these parameters (None: of all trainable ones), by their names.

    With style "per_parameter" each parameter is clipped by its own norm to its own max_norm; with "flat",
    "automatic" and "opacus" all have the same norms, those over all of `parameters`.
    """
    run = Forward(model, loss, inputs, target, seed)
    names = list(run.parameters) if parameters is None else parameters
    each = {name: run.sample_gradients(name) for name in names}
    squares = {name: gradients.reshape(run.batch, -1).square().sum(1) for name, gradients in each.items()}
    whole = torch.stack(list(squares.values())).sum(0)
    norms = {name: (squares[name] if style == "per_parameter" else whole).sqrt() for name in names}
    clipped = {}
    for name in names:
        bound = max_norm[name] if isinstance(max_norm, Mapping) else max_norm
        total = torch.zeros_like(run.parameters[name])
        for norm, gradient in zip(norms[name], each[name], strict=True):
            if style == "automatic":
                total += bound / (norm + 0.01) * gradient
            elif style == "opacus":
                total += min(1.0, bound / (norm + 1e-6)) * gradient
            else:
                total += gradient if norm <= bound else bound / norm * gradient
        clipped[name] = total.detach()
    return clipped, norms


def ggn_block(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, name: str, *, seed: int = 0
) -> Tensor:
    """The GGN of L in one parameter, [P, P]."""
    return Forward(model, loss, inputs, target, seed).ggn(name)


def hessian_block(
    model: nn.Module, loss: Loss, inputs: Inputs, target: Any, name: str, *, seed: int = 0
) -> Tensor:
    """The Hessian of L in one parameter, [P, P]."""
    return Forward(model, loss, inputs, target, seed).hessian(name)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected number."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return float((found - expected).abs().max()) / largest if largest else float(found.abs().max())
