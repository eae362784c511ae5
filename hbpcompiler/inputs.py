"""Checks of a batch, before anything is computed: types, devices, lengths, shapes and the target's values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.errors import InputError, InputTypeError
from hbpcompiler.graph import Graph
from hbpcompiler.rule import LossRule, Op


def shown(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def check_batch(model: nn.Module, batch: Sequence[Any]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and target, if they can be a batch of this model at all.

    Raises InputTypeError for what is no tensor or has a dtype other than the parameters', InputError for another
    device, an empty batch, different lengths or NaN in the target.
    """
    if len(batch) < 2:
        raise InputTypeError(f"a batch is (X, y): inputs and target, but {len(batch)} argument was given")
    names = ["X" if len(batch) == 2 else f"X{number + 1}" for number in range(len(batch) - 1)] + ["y"]
    for name, item in zip(names, batch, strict=True):
        if not isinstance(item, Tensor):
            raise InputTypeError(f"{name} must be a tensor, not {type(item).__name__}")
        if item.dim() == 0:
            raise InputError(f"{name} has no axes; its first axis must count the samples")
        if item.shape[0] == 0:
            raise InputError(f"{name} of shape {shown(item)} is an empty batch")
    parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    *inputs, target = batch
    for name, item in zip(names, batch, strict=True):
        if item.device != parameter.device:
            raise InputError(f"{name} is on device {item.device}, the model's parameters on {parameter.device}")
        if item.shape[0] != inputs[0].shape[0]:
            raise InputError(f"{names[0]} has {inputs[0].shape[0]} samples, {name} has {item.shape[0]}")
    for name, item in zip(names, inputs, strict=False):
        if item.is_floating_point() and item.dtype != parameter.dtype:
            raise InputTypeError(f"{name} has dtype {item.dtype}, the model's parameters have {parameter.dtype}; "
                                 f"convert one of them, e.g. {name}.to({parameter.dtype})")
        if item.is_complex():
            raise InputTypeError(f"{name} has dtype {item.dtype}; complex numbers are not supported")
    if target.is_floating_point() and bool(torch.isnan(target).any()):
        position = torch.isnan(target).nonzero()[0].tolist()
        raise InputError(f"y contains NaN, first at index {position}")
    return tuple(inputs), target


def check_target(rule: LossRule, op: Op, graph: Graph, target: Tensor) -> None:
    """The target's shape and values against the loss's rule."""
    if rule.target_shape is not None:
        allowed = [tuple(shape) for shape in rule.target_shape(op)]
        if tuple(target.shape[1:]) not in allowed:
            options = " or ".join("[" + ", ".join(["N", *map(str, shape)]) + "]" for shape in allowed)
            output = "[" + ", ".join(["N", *map(str, graph.output.sample_shape)]) + "]"
            raise InputError(f"y has shape {shown(target)}; for an output of shape {output} the loss takes {options}")
    if (complaint := rule.check(op, target)) is not None:
        raise InputError(f"y: {complaint}")
