"""Checks of a batch, before anything is computed: types, devices, lengths, shapes and the target's values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.errors import BatchDoesNotFitError, InputError, InputTypeError, ModelError
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
    parameter = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
    if parameter is None:
        raise ModelError("the model has nothing trainable: no parameter has requires_grad=True")
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


def check_runs(model: nn.Module, loss: Callable[..., Tensor], inputs: Sequence[Tensor], target: Tensor) -> None:
    """Run model and loss once on two samples of zeros, for torch's own messages with the batch's own shapes and types.

    Zeros are good indices everywhere. Buffers are copied and random numbers drawn aside, so nothing of the user's
    changes.
    """
    few, wanted = [torch.zeros_like(item[:2]) for item in inputs], torch.zeros_like(target[:2])
    state = {**dict(model.named_parameters()), **{name: value.clone() for name, value in model.named_buffers()}}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Using a target size")  # squared errors that broadcast [N] and [N, 1]
        try:
            output = torch.func.functional_call(model, state, tuple(few))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            batch = " and ".join(f"{described(item)}" for item in inputs)
            raise BatchDoesNotFitError(f"X does not go through the model. X is {batch}. {reason(error)}") from error
        if not isinstance(output, Tensor):
            return  # tracing says what to do
        try:
            loss(output, wanted)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, Warning) as error:
            shape = "[" + ", ".join(["N", *map(str, output.shape[1:])]) + "]"
            raise BatchDoesNotFitError(f"y does not fit the loss. y is {described(target)}, the model's output {shape} "
                                       f"{output.dtype}. {reason(error)}") from error


def described(tensor: Tensor) -> str:
    return f"{shown(tensor)} {tensor.dtype}"


def reason(error: BaseException) -> str:
    """The first line of torch's message, and its type."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"


def check_target(rule: LossRule, op: Op, graph: Graph, target: Tensor) -> None:
    """The target's shape, dtype and values against the loss's rule."""
    if target.is_floating_point() and target.dtype != graph.output.dtype:
        raise InputTypeError(f"y has dtype {target.dtype}, the model's output has {graph.output.dtype}; "
                             f"convert it: y.to({graph.output.dtype})")
    if rule.target_shape is not None:
        allowed = [tuple(shape) for shape in rule.target_shape(op)]
        if tuple(target.shape[1:]) not in allowed:
            options = " or ".join("[" + ", ".join(["N", *map(str, shape)]) + "]" for shape in allowed)
            output = "[" + ", ".join(["N", *map(str, graph.output.sample_shape)]) + "]"
            raise InputError(f"y has shape {shown(target)}; for an output of shape {output} the loss takes {options}")
    if (complaint := rule.check(op, target)) is not None:
        raise InputError(f"y: {complaint}")
