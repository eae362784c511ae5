"""The model's own training step: forward, loss and backward as the user would run them, and nothing of theirs changed.

Modules are called, so that hooks and custom functions do what they do in training; buffers and the batch are copies,
`p.grad` is not touched, and attributes that forward sets are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.noise import Moves
from hbpcompiler.compiler.prove.own_backward import TensorHooks, custom_nodes, has_python_nodes
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure, take_apart
from hbpcompiler.compiler.trace.with_state import (
    attributes_kept,
    call_with_state,
    holding,
    in_one_piece,
    leaves_of,
    loss_at,
    ordinary_mode,
)
from hbpcompiler.system.threads import alone

Loss = Callable[..., Tensor]
Found = TypeVar("Found")


@dataclass(frozen=True)
class OwnStep:
    """What the model's own training step gave."""

    loss: Tensor | None
    """None where it is not known (see `weights`)."""
    outputs: tuple[Tensor, ...]
    gradients: Mapping[str, Tensor]
    """By the name of a trainable parameter; those that do not reach the loss are left out."""
    random: bool
    """Whether torch's generators were drawn from."""
    python_random: bool
    """Whether Python's or numpy's were."""
    own_backward: bool
    """Whether hooks of tensors or custom functions have a part in the gradient."""


@dataclass(frozen=True)
class Pass:
    """A forward pass, still part of autograd's graph."""

    loss: Tensor
    outputs: list[Tensor]
    structure: Structure
    target: Any


class UnseenError(RuntimeError):
    """A model does not see other tensors in the place of its parameters."""

    def __init__(self) -> None:
        super().__init__("the model reaches parameters other than as attributes of its modules")


class _NeedsBackwardError(Exception):
    """The gradient is that of `.backward()`, and perhaps of nothing else; `reached` are the parameters in the graph."""

    def __init__(self, reached: set[str]) -> None:
        super().__init__()
        self.reached = reached


def own_step(model: nn.Module, loss: Loss, batch: Batch, draws: Draws, noise: Moves | None = None,
             backward: bool = True, of: Callable[[Pass], Tensor] = lambda pass_: pass_.loss,
             value: Callable[[Pass], Tensor | None] = lambda pass_: pass_.loss) -> OwnStep:
    """Run it with these draws; with `noise` on parameters, buffers and inputs; `of` is the number that is
    differentiated, `value` what the loss is. Raises whatever the model raises, UnseenError where `noise` gives numbers
    of another dtype to parameters of a model that does not see them.

    Where `.backward()` is needed, that of the user's parameters would call what listens to them (several processes'
    reduction): it is of tensors in their place, but for models that do not see these.
    """
    run = _Run(model, loss, batch, draws, noise, backward, of, value)
    try:
        return run()
    except RuntimeError as error:
        if "cudnn RNN backward" in str(error):  # in eval mode torch has no backward of cuDNN's kernel
            with torch.backends.cudnn.flags(enabled=False):
                return run()
        raise


@dataclass(frozen=True)
class _Run:
    """What `own_step` was asked for."""

    model: nn.Module
    loss: Loss
    batch: Batch
    draws: Draws
    noise: Moves | None
    backward: bool
    of: Callable[[Pass], Tensor]
    value: Callable[[Pass], Tensor | None]

    def __call__(self) -> OwnStep:
        try:
            return self._step()
        except _NeedsBackwardError as error:
            try:
                return self._step(error.reached, instead=True)
            except UnseenError:
                return self._step(error.reached)

    def _step(self, reached: set[str] | None = None, instead: bool = False) -> OwnStep:
        """`reached`: if it is known that `.backward()` is needed."""
        moved: Callable[[Tensor], Tensor] | None = torch.clone if instead else None
        given = self.batch
        tensor_hooks = TensorHooks()
        with drawing(self.draws), unchanged(self.model, self.loss), ordinary_mode(), tensor_hooks:
            buffers = copied_buffers(self.model)
            if self.noise is not None:
                moved = self.noise.moved
                buffers = {name: self.noise.moved(buffer) for name, buffer in buffers.items()}
                given = given.of([self.noise.moved(tensor) for tensor in given.tensors])
            own = list(trained(self.model).values())
            with moved_parameters(self.model, moved, True, instead) as (parameters, others):
                def finish(pass_: Pass) -> OwnStep:
                    is_python = has_python_nodes(pass_.loss)
                    if self.backward and is_python:
                        _check_backward(_names_of(leaves_of([pass_.loss]), parameters), reached, bool(others))
                    find = partial(_accumulated, own=own) if is_python else _gradients
                    return self._finish(pass_, tensor_hooks, lambda value: find(value, parameters))

                return forward(self.model, self.loss, given, buffers, seen(finish, self.model, others), others)

    def _finish(self, pass_: Pass, tensor_hooks: TensorHooks, find: Callable[[Tensor], dict[str, Tensor]]) -> OwnStep:
        after, found = Draws.now(self.draws.device), {}
        own = tensor_hooks.found or next(custom_nodes(pass_.loss), None) is not None
        if self.backward and (number := self.of(pass_)).requires_grad:
            rounding = self.noise.of_slope(number, pass_.outputs, self.batch.samples) if self.noise is not None else 0.0
            found = find(number + rounding)
        outputs, total = tuple(output.detach() for output in pass_.outputs), self.value(pass_)
        total = None if total is None else total.detach()
        return OwnStep(total, outputs, found, after.torch_drew(self.draws), after.python_drew(self.draws), own)


def _check_backward(here: set[str], reached: set[str] | None, instead: bool) -> None:
    """Whether a pass of which `.backward()` is needed is one in which it may be called."""
    if not instead and reached is None:
        raise _NeedsBackwardError(here)
    if instead and reached is not None and here != reached:
        raise UnseenError


def _accumulated(value: Tensor, parameters: Mapping[str, Tensor], own: Sequence[Tensor]) -> dict[str, Tensor]:
    """What `.backward()` leaves at the parameters, or at what is in the place of the user's own."""
    instead = {id(each) for each in own}.isdisjoint(map(id, parameters.values()))
    with holding(own, hooks=not instead):
        value.backward()
        if instead and any(each.grad is not None for each in own):
            raise UnseenError
        return {name: parameter.grad.detach().to_dense() for name, parameter in parameters.items()
                if parameter.grad is not None}


def _gradients(value: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: gradient.detach().to_dense() for name, gradient in zip(parameters, found, strict=True)
            if gradient is not None}


def _names_of(leaves: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    own = {id(leaf) for leaf in leaves}
    return {name for name, parameter in parameters.items() if id(parameter) in own}


@contextmanager
def moved_parameters(model: nn.Module, moved: Callable[[Tensor], Tensor] | None, hooks: bool = False,
                     instead: bool = False) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The trainable parameters as leaves, with other numbers if there is a `moved`: themselves, or tensors that belong
    in their place (the second dict) if `instead`, or where these are of another dtype, which would part a parameter
    from what listens to its gradient."""
    own = trained(model)
    if moved is None:
        yield own, {}
        return
    values = {name: moved(parameter.detach()) for name, parameter in own.items()}
    if not instead and all(values[name].dtype == parameter.dtype for name, parameter in own.items()):
        with holding(list(own.values()), list(values.values()), hooks):
            in_one_piece(model, list(own.values()))
            yield own, {}
        return
    for name, parameter in own.items():
        values[name] = values[name].clone().requires_grad_()
        for hook in (parameter._backward_hooks or {}).values() if hooks else ():
            values[name].register_hook(hook)
    yield values, values


def seen(finish: Callable[[Pass], Found], model: nn.Module, instead: Mapping[str, Tensor]) -> Callable[[Pass], Found]:
    """`finish`, which raises UnseenError where parameters have a part that other tensors should be in the place of."""
    own = {id(parameter) for parameter in trained(model).values()}

    def checked(pass_: Pass) -> Found:
        if instead and not own.isdisjoint(map(id, leaves_of([pass_.loss, *pass_.outputs]))):
            raise UnseenError
        return finish(pass_)

    return checked


def forward(model: nn.Module, loss: Loss, batch: Batch, buffers: Mapping[str, Tensor], finish: Callable[[Pass], Found],
            parameters: Mapping[str, Tensor] = MappingProxyType({})) -> Found:
    """`finish` of a forward pass of copies of the batch; meanwhile these are in place of the model's."""
    found: Found = call_with_state(_Training(model, loss), _within(parameters), _within(buffers), (batch, finish))
    return found


def _within(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


class _Training(nn.Module):
    """A module whose forward does it all, so that other parameters or buffers are in place during backward, too."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = (loss,)  # no module of this one

    def forward(self, batch: Batch, finish: Callable[[Pass], Any]) -> Any:
        args, keywords, target = batch.layout.build(batch.copies())
        output = self.model(*args, **keywords)
        outputs, structure = take_apart(output, leave_out=True)
        return finish(Pass(loss_at(self.loss[0], output, target), outputs, structure, target))


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies, which forward may overwrite."""
    return {name: value.detach().clone() for name, value in model.named_buffers()}


@contextmanager
def unchanged(*callables: Any) -> Iterator[None]:
    """The modules' attributes are afterwards what they were."""
    models = [item for item in callables if isinstance(item, nn.Module)]
    with alone(*models), attributes_kept([module for model in models for module in model.modules()]):
        yield
