"""The model's own training step: forward, loss and backward as the user would run them, and nothing of theirs changed.

Modules are called, so that hooks and custom functions do what they do in training; buffers and the batch are copies,
`p.grad` is not touched, and attributes that forward sets are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.compiler.prove.own_backward import TensorHooks, custom_nodes, has_python_nodes
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.containers import Structure, take_apart
from hbpcompiler.compiler.trace.with_state import call_with_state, holding, in_one_piece, leaves_of

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


class UnseenError(RuntimeError):
    """A model does not see other tensors in the place of its parameters."""


def own_step(model: nn.Module, loss: Loss, batch: Batch, draws: Draws, noise: Moves | None = None,
             backward: bool = True, of: Callable[[Pass], Tensor] = lambda pass_: pass_.loss,
             value: Callable[[Pass], Tensor | None] = lambda pass_: pass_.loss) -> OwnStep:
    """Run it with these draws; with `noise` on parameters, buffers and inputs; `of` is the number that is
    differentiated, `value` what the loss is. Raises whatever the model raises."""
    try:
        return _step(model, loss, batch, draws, noise, backward, of, value)
    except RuntimeError as error:
        if "cudnn RNN backward" in str(error):  # in eval mode torch has no backward of cuDNN's kernel
            with torch.backends.cudnn.flags(enabled=False):
                return _step(model, loss, batch, draws, noise, backward, of, value)
        raise


def _step(model: nn.Module, loss: Loss, batch: Batch, draws: Draws, noise: Moves | None, backward: bool,
          of: Callable[[Pass], Tensor], value: Callable[[Pass], Tensor | None]) -> OwnStep:
    def finish(pass_: Pass) -> OwnStep:
        after, found = Draws.now(draws.device), {}
        own = tensor_hooks.found or next(custom_nodes(pass_.loss), None) is not None
        if backward and (number := of(pass_)).requires_grad:
            rounding = noise.of_slope(number, pass_.outputs, batch.samples) if noise is not None else 0.0
            found = _gradients(number + rounding, parameters, has_python_nodes(pass_.loss))
        outputs, total = tuple(output.detach() for output in pass_.outputs), value(pass_)
        total = None if total is None else total.detach()
        return OwnStep(total, outputs, found, after.torch_drew(draws), after.python_drew(draws), own)

    tensor_hooks = TensorHooks()
    with unchanged(model, loss), drawing(draws), ordinary_mode(), tensor_hooks:
        if noise is None:
            parameters = trained(model)
            with holding(list(parameters.values()), hooks=True):
                return forward(model, loss, batch, copied_buffers(model), finish)
        buffers = {name: noise.moved(buffer) for name, buffer in copied_buffers(model).items()}
        given = Batch(tuple(noise.moved(tensor) for tensor in batch.tensors), batch.layout)
        with moved_parameters(model, noise.moved, hooks=True) as (parameters, instead):
            return forward(model, loss, given, buffers, seen(finish, model, instead), instead)


@contextmanager
def moved_parameters(model: nn.Module, moved: Callable[[Tensor], Tensor], hooks: bool = False,
                     ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The trainable parameters as leaves with other numbers: themselves, or tensors that belong in their place (the
    second dict) where these are of another dtype, which would part a parameter from what listens to its gradient."""
    own = trained(model)
    values = {name: moved(parameter.detach()) for name, parameter in own.items()}
    if all(values[name].dtype == parameter.dtype for name, parameter in own.items()):
        with holding(list(own.values()), list(values.values()), hooks):
            in_one_piece(model, list(own.values()))
            yield own, {}
        return
    for name, parameter in own.items():
        values[name].requires_grad_()
        for hook in (parameter._backward_hooks or {}).values() if hooks else ():
            values[name].register_hook(hook)
    yield values, values


def seen(finish: Callable[[Pass], Found], model: nn.Module, instead: Mapping[str, Tensor]) -> Callable[[Pass], Found]:
    """`finish`, which raises UnseenError where parameters have a part that other tensors should be in the place of."""
    own = {id(parameter) for parameter in trained(model).values()}

    def checked(pass_: Pass) -> Found:
        if instead and not own.isdisjoint(map(id, leaves_of([pass_.loss, *pass_.outputs]))):
            raise UnseenError("the model reaches parameters other than as attributes of its modules")
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
        args, keywords, target = batch.layout.build([tensor.detach().clone() for tensor in batch.tensors])
        output = self.model(*args, **keywords)
        outputs, structure = take_apart(output, leave_out=True)
        return finish(Pass(self.loss[0](output, target), outputs, structure, target))


def _gradients(value: Tensor, parameters: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """By `.backward()` where custom functions may call it themselves."""
    if backward:
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
