"""The model's own training step: forward, loss and backward as the user would run them, and nothing of theirs changed.

Modules are called, so that hooks and custom functions do what they do in training; buffers and the batch are copies,
`p.grad` is not touched, and attributes that forward sets are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_backward import TensorHooks, custom_nodes, has_python_nodes
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure, take_apart
from hbpcompiler.compiler.trace.with_state import call_with_state

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


class Moves(Protocol):
    """What happens to all numbers that a step begins with."""

    def moved(self, tensor: Tensor) -> Tensor:
        """In the place of a parameter, a buffer, an input."""

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        """What is added to the loss."""


@dataclass(frozen=True)
class Noise:
    """Numbers moved by their own rounding: each one up or down by `size` times itself."""

    size: float
    seed: int

    def moved(self, tensor: Tensor) -> Tensor:
        """Floating-point tensors only; others as they are."""
        if not tensor.is_floating_point():
            return tensor
        factors = self._factors.to(tensor.device, tensor.dtype)
        numbers = tensor.numel()
        return tensor * factors.repeat(numbers // len(factors) + 1)[:numbers].view(tensor.shape)

    def of_slope(self, loss: Tensor, outputs: Sequence[Tensor], samples: int) -> Tensor:
        """What rounding in the loss's own slope adds to the loss, in first order.

        Where that slope is zero throughout, its terms have cancelled without a trace (a softmax over one class), and
        are taken to be those of a mean over samples of a loss without units: 1/N.
        """
        largest = _largest_slope(loss, outputs)
        return self.of_slopes_of(largest or 1 / max(samples, 1), loss, outputs)

    def of_slopes_of(self, largest: float, loss: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The same of slopes of this size."""
        total = torch.zeros_like(loss)
        generator = torch.Generator().manual_seed(self.seed)
        for output in outputs:
            if not output.requires_grad:
                continue
            output = torch.view_as_real(output) if output.is_complex() else output
            # not signs alone, which would cancel in few samples
            moves = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu").to(output)
            total = total + (output * moves).sum() * (self.size * largest)
        return total

    @cached_property
    def _factors(self) -> Tensor:
        """Random ones near one; as many as no length of a model is likely to divide."""
        generator = torch.Generator().manual_seed(self.seed)
        signs = 2 * torch.randint(0, 2, (8191,), generator=generator, device="cpu") - 1
        return 1 + self.size * signs.double()


def _largest_slope(loss: Tensor, outputs: Sequence[Tensor]) -> float:
    """Of the loss in the model's outputs."""
    reached = [output for output in outputs if output.requires_grad]
    if not reached:
        return 0.0
    slopes = torch.autograd.grad(loss, reached, retain_graph=True, allow_unused=True, materialize_grads=True)
    return max((float(slope.abs().max()) for slope in slopes if slope.numel()), default=0.0)


class _NeedsBackwardError(Exception):
    """The gradient is that of `.backward()`, and perhaps of nothing else."""


def own_step(model: nn.Module, loss: Loss, batch: Batch, draws: Draws, noise: Moves | None = None,
             backward: bool = True, of: Callable[[Pass], Tensor] = lambda pass_: pass_.loss,
             value: Callable[[Pass], Tensor | None] = lambda pass_: pass_.loss) -> OwnStep:
    """Run it with these draws; with `noise` on parameters, buffers and inputs; `of` is the number that is
    differentiated, `value` what the loss is. Raises whatever the model raises."""
    def step(copies: bool = noise is not None) -> OwnStep:
        return _step(model, loss, batch, draws, noise, backward, copies, of, value)

    try:
        return step()
    except RuntimeError as error:
        if "cudnn RNN backward" in str(error):  # in eval mode torch has no backward of cuDNN's kernel
            with torch.backends.cudnn.flags(enabled=False):
                return step()
        raise
    except _NeedsBackwardError:  # which is not for the user's parameters
        return step(copies=True)


def _step(model: nn.Module, loss: Loss, batch: Batch, draws: Draws, noise: Moves | None, backward: bool,
          copies: bool, of: Callable[[Pass], Tensor], value: Callable[[Pass], Tensor | None]) -> OwnStep:
    def finish(pass_: Pass) -> OwnStep:
        after, found = Draws.now(draws.device), {}
        if backward and not copies and has_python_nodes(pass_.loss):
            raise _NeedsBackwardError
        own = tensor_hooks.found or next(custom_nodes(pass_.loss), None) is not None
        if backward and (number := of(pass_)).requires_grad:
            rounding = noise.of_slope(number, pass_.outputs, batch.samples) if noise is not None else 0.0
            found = _gradients(number + rounding, parameters, copies)
        outputs, total = tuple(output.detach() for output in pass_.outputs), value(pass_)
        total = None if total is None else total.detach()
        return OwnStep(total, outputs, found, after.torch_drew(draws), after.python_drew(draws), own)

    tensor_hooks = TensorHooks()
    with unchanged(model, loss), drawing(draws), ordinary_mode(), tensor_hooks:
        parameters, state = trained(model), copied_buffers(model)
        if copies:
            moved = noise.moved if noise is not None else torch.clone
            state = {name: moved(value) for name, value in state.items()}
            parameters = {name: _with_hooks_of(value, moved(value.detach())) for name, value in parameters.items()}
            state |= parameters
        return forward(model, loss, batch if noise is None else _moved(batch, noise), state, finish)


def forward(model: nn.Module, loss: Loss, batch: Batch, state: Mapping[str, Tensor],
            finish: Callable[[Pass], Found]) -> Found:
    """`finish` of a forward pass of copies of the batch; meanwhile `state` is in place of the model's."""
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    found: Found = call_with_state(_Training(model, loss), named, (batch, finish))
    return found


class _Training(nn.Module):
    """A module whose forward does it all, so that other parameters or buffers are in place during backward, too."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = (loss,)  # no module of this one

    def forward(self, batch: Batch, finish: Callable[[Pass], Any]) -> Any:
        args, keywords, target = batch.layout.build([tensor.detach().clone() for tensor in batch.tensors])
        output = self.model(*args, **keywords)
        outputs, structure = take_apart(output, leave_out=True)
        return finish(Pass(self.loss[0](output, target), outputs, structure, target))


def _with_hooks_of(parameter: Tensor, copy: Tensor) -> Tensor:
    """The copy as a leaf, at which the same is done to the gradient."""
    copy.requires_grad_()
    for hook in (parameter._backward_hooks or {}).values():
        copy.register_hook(hook)
    return copy


def _gradients(value: Tensor, parameters: Mapping[str, Tensor], copies: bool) -> dict[str, Tensor]:
    if copies:
        value.backward()
        found = [parameter.grad for parameter in parameters.values()]
    else:
        found = list(torch.autograd.grad(value, list(parameters.values()), allow_unused=True))
    return {name: gradient.detach().to_dense() for name, gradient in zip(parameters, found, strict=True)
            if gradient is not None}


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copied_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies, which forward may overwrite."""
    return {name: value.detach().clone() for name, value in model.named_buffers()}


def _moved(batch: Batch, noise: Moves) -> Batch:
    return Batch(tuple(noise.moved(tensor) for tensor in batch.tensors), batch.layout)


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Gradients are on, whatever the call came from."""
    outside = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with outside, torch.enable_grad():
        yield


@contextmanager
def unchanged(*callables: Any) -> Iterator[None]:
    """The modules' attributes are afterwards what they were."""
    modules = [module for item in callables if isinstance(item, nn.Module) for module in item.modules()]
    before = [(module, dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for module, attributes in before:
            own = vars(module)
            for name in [name for name in own if name not in attributes]:
                del own[name]
            own.update(attributes)
