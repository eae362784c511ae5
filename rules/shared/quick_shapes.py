"""Shapes of some operations from those of their arguments, for which torch's table goes through a dozen others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Known = Callable[..., Any]
"""How torch's table of decompositions has it."""


def _of_softmax(known: Known) -> Known:
    @functools.wraps(known)
    def shaped(x: Tensor, dim: int, half_to_float: bool) -> Any:
        if half_to_float or not x.is_floating_point():
            return known(x, dim, half_to_float)
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    return shaped


def _of_nll_loss(known: Known) -> Known:
    """Of [N, C, *positions] and [N, *positions]: the loss and the weight of all targets."""
    @functools.wraps(known)
    def shaped(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int) -> Any:
        fits = x.dim() >= 2 and (x.shape[0], *x.shape[2:]) == target.shape
        if weight is not None and (weight.dtype != x.dtype or weight.shape != x.shape[1:2]):
            fits = False
        if not fits:
            return known(x, target, weight, reduction, ignore_index)
        return x.new_empty(target.shape if reduction == 0 else ()), x.new_empty(())

    return shaped


def _of_addmm(known: Known) -> Known:
    """One product of matrices, and a row or a matrix added."""
    @functools.wraps(known)
    def shaped(x: Tensor, first: Tensor, second: Tensor, beta: int = 1, alpha: int = 1) -> Any:
        fits = first.dim() == second.dim() == 2 and first.shape[1] == second.shape[0]
        row = fits and x.shape[-1:] == second.shape[1:] and (x.dim() == 1 or x.shape[:-1] == first.shape[:1])
        if not row or not x.dtype == first.dtype == second.dtype:
            return known(x, first, second, beta=beta, alpha=alpha)
        return first.new_empty((first.shape[0], second.shape[1]))

    return shaped


def _of_relu(known: Known) -> Known:
    @functools.wraps(known)
    def shaped(input: Tensor) -> Any:
        return known(input) if input.dtype == torch.bool else torch.empty_like(input)

    return shaped


def _of_cat(known: Known) -> Known:
    """Of tensors that lie row by row and differ along that axis alone."""
    @functools.wraps(known)
    def shaped(tensors: Sequence[Tensor], dim: int = 0) -> Any:
        first = tensors[0]
        axis = dim % max(1, first.dim())
        around = (*first.shape[:axis], *first.shape[axis + 1:])
        for each in tensors:
            if each.dim() != first.dim() or each.dtype != first.dtype or not each.is_contiguous() or (
                    (*each.shape[:axis], *each.shape[axis + 1:]) != around):
                return known(tensors, dim)
        along = sum(each.shape[axis] for each in tensors)
        return first.new_empty((*first.shape[:axis], along, *first.shape[axis + 1:]))

    return shaped


def _shaped_like_its_input(known: Known) -> Known:
    """Batch normalisation as far as shapes go; processors alone leave its statistics out."""
    @functools.wraps(known)
    def shaped(input: Tensor, *rest: Any, **options: Any) -> Any:
        if input.device.type != "cpu":
            return known(input, *rest, **options)
        return torch.empty_like(input), input.new_empty(0), input.new_empty(0)

    return shaped


aten = torch.ops.aten
QUICK: dict[Any, Callable[[Known], Known]] = {
    aten._native_batch_norm_legit_no_training.default: _shaped_like_its_input,
    aten.relu.default: _of_relu,
    aten.cat.default: _of_cat,
    aten._softmax.default: _of_softmax,
    aten._log_softmax.default: _of_softmax,
    aten.nll_loss_forward.default: _of_nll_loss,
    aten.nll_loss2d_forward.default: _of_nll_loss,
    aten.addmm.default: _of_addmm,
}
"""Operation -> its shapes, given how torch has them."""
