"""torch's own derivatives of a function, as rules write them where nobody has written better: idioms (see `idioms`).

`function` takes tensors [N, *in] and returns [N, *out], each sample by itself. So one backward pass serves all samples:
what it sends to a sample's input is that sample's alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import idiom


def _pulled_on_meta(function: Any, columns: Tensor, inputs: list[Tensor], at: int, one_by_one: bool = False) -> Tensor:
    dtype = inputs[at].dtype if columns.dtype == function.dtype else columns.dtype
    return columns.new_empty((*columns.shape[:2], *inputs[at].shape[1:]), dtype=dtype)


def _residual_on_meta(function: Any, gradient: Tensor, inputs: list[Tensor], at: list[int],
                      one_by_one: bool = False) -> tuple[Tensor, Tensor]:
    samples = inputs[at[0]].shape[0]
    size = sum(inputs[i].shape[1:].numel() for i in at)
    hessian = inputs[at[0]].new_empty((samples, size, size))
    return torch.empty_like(hessian), hessian[..., 0].clone()


def _slope_on_meta(function: Any, inputs: list[Tensor], at: int) -> Tensor:
    return torch.empty_like(inputs[at])


def _passing_on_meta(function: Any, inputs: list[Tensor], at: int) -> Tensor:
    return torch.empty_like(inputs[at], dtype=torch.bool)


def _bend_on_meta(function: Any, gradient: Tensor, inputs: list[Tensor], at: int) -> Tensor:
    return torch.empty_like(inputs[at])


@idiom
def vjp(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
    """function(*inputs), and what sends a cotangent of it back to all inputs, as torch.func.vjp; by torch.autograd, so
    that operations of users with a backward pass of their own can take part."""
    with torch.enable_grad():
        given = [x if x.requires_grad else x.detach().requires_grad_() for x in inputs]
        y = function(*given)

    def back(column: Tensor) -> tuple[Tensor, ...]:
        if not y.requires_grad:
            return tuple(torch.zeros_like(x) for x in given)
        return torch.autograd.grad(y, given, column, retain_graph=True, create_graph=torch.is_grad_enabled(),
                                   allow_unused=True, materialize_grads=True)

    return y, back


@idiom(on_meta=_pulled_on_meta)
def pulled_back(function: Callable[..., Tensor], columns: Tensor, inputs: list[Tensor], at: int,
                one_by_one: bool = False) -> Tensor:
    """Columns [N, K, *out] at function(*inputs) back to inputs[at], by torch's derivative: [N, K, *in]."""
    y, back = vjp(lambda x: function(*inputs[:at], x, *inputs[at + 1 :]), inputs[at])
    given = columns.to(y.dtype)
    if one_by_one or columns.shape[1] == 1:
        pulled = torch.stack([back(column)[0] for column in given.unbind(1)], 1)
    else:
        pulled = torch.func.vmap(lambda column: back(column)[0], 1)(given).movedim(0, 1).clone()
    return pulled if columns.dtype == y.dtype else pulled.to(columns.dtype)


@idiom
def slope_in_all(function: Callable[..., Tensor], gradient: Tensor, inputs: list[Tensor], at: list[int],
                 ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Each sample's inputs[i], i of `at`, laid end to end, [N, D]; and before it the derivative of <gradient,
    function(*inputs)> in them, as a function of that."""
    moving = [inputs[i] for i in at]
    samples = gradient.shape[0]
    sizes = [x.shape[1:].numel() for x in moving]
    joined = torch.cat([x.reshape(samples, size) for x, size in zip(moving, sizes, strict=True)], 1)

    def of_moving(*parts: Tensor) -> Tensor:
        given = list(inputs)
        for i, part in zip(at, parts, strict=True):
            given[i] = part
        return function(*given)

    def slope(joined: Tensor) -> Tensor:
        parts = joined.split(sizes, 1)
        shaped = [part.reshape(x.shape).clone(memory_format=torch.contiguous_format)
                  for part, x in zip(parts, moving, strict=True)]
        _, back = vjp(of_moving, *shaped)
        pulled = zip(back(gradient), sizes, strict=True)
        return torch.cat([1 * part.reshape(samples, size) for part, size in pulled], 1)

    # clone() and 1 * : memory of its own, each way, because pairs at an odd place of another's are no complex numbers.
    return slope, joined


@idiom(on_meta=_residual_on_meta)
def residual_columns(function: Callable[..., Tensor], gradient: Tensor, inputs: list[Tensor], at: list[int],
                     one_by_one: bool = False) -> tuple[Tensor, Tensor]:
    """The Hessian [D, D] of each sample's <gradient, function(*inputs)> in its inputs[i], i of `at`, laid end to end:
    by its eigenvalues as columns [N, D, D] and signs [N, D]."""
    slope, joined = slope_in_all(function, gradient, inputs, at)
    samples = gradient.shape[0]
    units = torch.eye(joined.shape[1], dtype=joined.dtype, device=joined.device).expand(samples, -1, -1)
    hessian = pulled_back(slope, units, [joined], 0, one_by_one)
    hessian = ((hessian + hessian.mT) / 2).to(torch.promote_types(hessian.dtype, torch.float32))
    values, vectors = torch.linalg.eigh(hessian.nan_to_num())
    columns = (vectors * values.abs().sqrt().unsqueeze(1)).mT + 0 * hessian  # what is not finite stays so
    return columns.to(joined.dtype), torch.where(values < 0, -1, 1).to(joined.dtype)


@idiom(on_meta=_slope_on_meta)
def slope_of(function: Callable[..., Tensor], inputs: list[Tensor], at: int) -> Tensor:
    """The derivative of an elementwise function in inputs[at]."""
    y, back = vjp(lambda x: function(*inputs[:at], x, *inputs[at + 1 :]), inputs[at])
    slope: Tensor = back(torch.ones_like(y))[0].clone()
    return slope


@idiom(on_meta=_passing_on_meta)
def passing_of(function: Callable[..., Tensor], inputs: list[Tensor], at: int) -> Tensor:
    """Where an elementwise function sends anything to inputs[at], a mask: nowhere that torch selects 0, whatever
    arrives, rather than multiply by it."""
    y, back = vjp(lambda x: function(*inputs[:at], x, *inputs[at + 1 :]), inputs[at])
    passed: Tensor = back(torch.full_like(y, torch.inf))[0] != 0
    return passed


@idiom(on_meta=_bend_on_meta)
def bend_of(function: Callable[..., Tensor], gradient: Tensor, inputs: list[Tensor], at: int) -> Tensor:
    """gradient times the second derivative of an elementwise function in inputs[at]."""
    _, back = vjp(lambda x: slope_of(function, [*inputs[:at], x, *inputs[at + 1 :]], at), inputs[at])
    bend: Tensor = back(gradient)[0].clone()
    return bend
