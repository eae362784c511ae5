"""Checks of a batch, before anything is computed: types, devices, lengths, shapes and the target's values."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.trace.batch import Batch, batch_of
from hbpcompiler.compiler.trace.conditions.values import Answers, recorded
from hbpcompiler.compiler.trace.containers import StrangerError, take_apart
from hbpcompiler.compiler.trace.patches.equivalents import plain_ways
from hbpcompiler.compiler.trace.refusals.advice import MEANT, advice, of_inputs, unlikely
from hbpcompiler.compiler.trace.refusals.refusals import classes_given, line_of, lines_of, place_of_error
from hbpcompiler.compiler.trace.refusals.unregistered import unregistered
from hbpcompiler.compiler.trace.with_state import call_with_state, holding, loss_at, ordinary_mode
from hbpcompiler.dense import not_dense
from hbpcompiler.errors import (
    BatchDoesNotFitError,
    InputError,
    InputTypeError,
    LossWarning,
    ModelError,
    UnsupportedOpError,
    UnusedParametersWarning,
)
from hbpcompiler.system.callers import level_of_caller
from hbpcompiler.system.threads import TRACING, alone, followed, is_followed, undisturbed

SAMPLES = 2
"""Rows of a batch on which model and loss are tried."""


def shown(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def check_batch(model: nn.Module, arguments: Sequence[Any]) -> Batch:
    """The batch, if it can be one of this model at all.

    Raises InputTypeError for what is no dense tensor or has a dtype other than the parameters', InputError for another
    device, different lengths, or within a transform of torch.func; ModelError within another model's trace.

    A trace in another thread puts tensors of its own, which may lie elsewhere, in the parameters' places meanwhile:
    what does not fit is asked again when it is over.
    """
    try:
        return _checked(model, arguments)
    except InputError:
        with TRACING:
            return _checked(model, arguments)


def _checked(model: nn.Module, arguments: Sequence[Any]) -> Batch:
    if is_followed():
        raise ModelError(f"the model cannot be traced: {line_of(sys._getframe(2))}: a compiled model is called within "
                         "another model's forward, hook or loss, and a program does not call another. Compute what it "
                         "gives outside, and hand it over with the target, as in y = (labels, teacher(x).output)")
    if torch._C._are_functorch_transforms_active():
        raise InputError("a compiled model is called within torch.func (grad, vmap, jacrev, ...), which a program does "
                         "not take part in: its results have no derivative. Call it outside; quantities such as "
                         "'jacobian' and 'batch_grad' are what these transforms are for")
    batch = batch_of(arguments)
    named = list(zip(batch.layout.labels, batch.tensors, strict=True))
    for name, item in named:
        if (how := not_dense(item)):
            raise InputTypeError(f"{name} is {how}")
        if item.dim() == 0:
            raise InputError(f"{name} has no axes; its first axis must count the samples: one sample is X[None], "
                             "y[None] (a constant of the model belongs in a buffer)")
    parameter = undisturbed(
        model, lambda: next((parameter for parameter in model.parameters() if parameter.requires_grad), None))
    if parameter is None:
        raise ModelError("the model has nothing trainable: no parameter has requires_grad=True, as "
                         "model.requires_grad_(True) gives it")
    if parameter.is_meta:
        raise InputError("the model's parameters are on the device meta, which holds no numbers: give it some, as by "
                         "model.to_empty(device='cpu') and load_state_dict, before it is called")
    first, samples = named[0][0], batch.tensors[0].shape[0]
    for name, item in named:
        if item.device != parameter.device:
            raise InputError(f"{name} is on device {item.device}, the model's parameters on {parameter.device}")
        if item.shape[0] != samples:
            raise InputError(f"{first} has {samples} samples, {name} has {item.shape[0]}" + _advice(item, samples))
    for name, item in named[: batch.layout.inputs]:
        if item.is_floating_point() and item.dtype != parameter.dtype and item.dtype not in _dtypes(model):
            raise InputTypeError(f"{name} has dtype {item.dtype}, the model's parameters have {parameter.dtype}; "
                                 f"convert one of them, e.g. {name}.to({parameter.dtype})")
        if item.is_complex() and item.dtype.to_real() != parameter.dtype:
            raise InputTypeError(f"{name} has dtype {item.dtype}, the model's parameters have {parameter.dtype}; "
                                 f"convert one of them, e.g. {name}.to({parameter.dtype.to_complex()})")
    return batch


def refuse_nan(batch: Batch, allowed: Callable[[int], bool] = lambda place: False) -> None:
    """Raise InputError for NaN in a target, unless that is allowed in the target of this number."""
    labels = batch.layout.labels[batch.layout.inputs :]
    for place, (name, item) in enumerate(zip(labels, batch.targets, strict=True)):
        if item.is_floating_point() and bool(torch.isnan(item).any()) and not allowed(place):
            position = torch.isnan(item).nonzero()[0].tolist()
            raise InputError(f"{name} contains NaN, first at index {position}")


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    """The parameters'; in a model of several it is for forward to say which its inputs have."""
    return {parameter.dtype for parameter in model.parameters()}


def _advice(item: Tensor, samples: int) -> str:
    """What to do about a first axis of another length."""
    if samples and item.shape[0] % samples == 0:
        return (f"; the first axis of every tensor counts the samples, so positions belong in an axis of their own: "
                f"[{samples}, {item.shape[0] // samples}, ...] (the loss may flatten it)")
    return "; the first axis of every tensor counts the samples (a constant of the model belongs in a buffer)"


@dataclass(frozen=True)
class FirstRun:
    """What a run of model and loss on some rows of a batch showed."""

    answers: Answers
    """What Python code made of tensors' values."""
    complaint: BatchDoesNotFitError | None = None
    """What torch says of these targets, if targets of zeros in their place would have gone through."""
    numbers: int = 0
    """How many numbers the model returns for each sample; 0 where that was not to be seen."""
    doubt: str = ""
    """What is said of a loss that hardly is the one that is meant."""
    left_out: str = ""
    """What is said of tensors that torch would train, and the model does not know of."""

    def warn(self) -> None:
        if self.doubt:
            warnings.warn(self.doubt, LossWarning, stacklevel=level_of_caller())
        if self.left_out:
            warnings.warn(self.left_out, UnusedParametersWarning, stacklevel=level_of_caller())


def complaint_of(model: nn.Module, loss: Callable[..., Tensor], batch: Batch) -> BatchDoesNotFitError | None:
    """What model and loss themselves say of a batch that a program, or something else, has stopped at; None: nothing.
    """
    try:
        return check_runs(model, loss, batch, batch.samples).complaint
    except BatchDoesNotFitError as error:
        return error


def check_runs(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, samples: int = SAMPLES) -> FirstRun:
    """Run model and loss once on some of the batch's own rows, or all where some do not go through, for torch's own
    messages. Raises BatchDoesNotFitError.

    Parameters and buffers are copied and random numbers drawn aside, so nothing of the user's changes.
    """
    try:
        found = _run(model, loss, batch, samples)
    except BatchDoesNotFitError:
        if samples >= batch.samples:
            raise
        with contextlib.suppress(BatchDoesNotFitError):
            return _run(model, loss, batch, batch.samples)  # a mask may pick too few of two rows, say
        raise
    if found.complaint is not None and samples < batch.samples:
        whole = _run(model, loss, batch, batch.samples)
        found = found if whole.complaint is not None else whole
    return found


def _run(model: nn.Module, loss: Callable[..., Tensor], batch: Batch, samples: int) -> FirstRun:
    with ordinary_mode():  # copies that derivatives can be taken of
        rows = batch.rows(samples)
        buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    arguments, keywords, wanted = batch.layout.build(rows)
    parameters = list(model.parameters())
    devices = sorted({tensor.device.index for tensor in batch.tensors if tensor.is_cuda})
    with (TRACING, ordinary_mode(), torch.random.fork_rng(devices), warnings.catch_warnings(), plain_ways(),
          classes_given(), followed(), recorded() as answers):  # they put back what was there: two threads' would cross
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Using a target size")  # squared errors that broadcast [N] and [N, 1]
        try:
            with alone(model), holding(parameters, [parameter.detach().clone() for parameter in parameters]):
                output = call_with_state(model, {}, buffers, arguments, keywords)
        except (ModelError, UnsupportedOpError):
            raise
        except Exception as error:
            given = _described(batch.layout.labels, batch.inputs)
            advised = of_inputs(str(error), batch, model.forward, type(model).__qualname__)
            raise BatchDoesNotFitError(f"X does not go through the model. {given}. {_tried(samples)} {reason(error)}"
                                       f"{_at(place_of_error(model, error))}{advised}") from error
        try:
            outputs, structure = take_apart(output, leave_out=True)
        except StrangerError:
            return FirstRun(answers)  # tracing says what to do
        if not outputs:
            missing = "; is a return missing?" if output is None else (
                "; leave .item(), float() or int() out" if isinstance(output, int | float) else "")
            raise ModelError("the model must return a tensor or several, but returned "
                             f"{type(output).__name__}{missing}")
        scores = isinstance(output, Tensor) and output.is_floating_point()
        if type(loss) is nn.CrossEntropyLoss and scores and output.dim() == 1:
            raise BatchDoesNotFitError(
                f"CrossEntropyLoss, which is the default, takes outputs [N, C], and the model's are [N]; {MEANT}")
        try:
            loss_at(loss, output, wanted)
        except (ModelError, UnsupportedOpError):
            raise
        except Exception as error:
            made = ", ".join(f"{_of_batch(item, samples)} {item.dtype}" for item in outputs)
            made = made if structure.is_one_tensor else f"a {type(output).__name__} of {made}"
            complaint = _complaint(error, batch, made, "" if structure.is_one_tensor else _one_of(output), samples)
            complaint.__cause__ = error
            zeros = [torch.zeros_like(row) for row in rows]
            if not _goes_through(loss, output, batch.layout.build(zeros)[2]):
                raise complaint from error
            return FirstRun(answers, complaint)
    return FirstRun(answers, numbers=sum(item.numel() for item in outputs) // max(1, samples),
                    doubt=unlikely(loss, output, wanted),
                    left_out=unregistered(model, outputs, (*parameters, *rows, *batch.tensors)))


def _one_of(output: Any) -> str:
    """How a loss reads one tensor of what a model returns."""
    held: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        held = output
    elif dataclasses.is_dataclass(output):
        held = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    names = [name for name, value in held.items() if isinstance(value, Tensor)] or list(held)
    if not names:
        return "output[0]"
    name = "logits" if "logits" in names else names[0]
    return f"output[{name!r}]" if isinstance(output, Mapping) else f"output.{name}"


def _complaint(error: Exception, batch: Batch, made: str, part: str, samples: int) -> BatchDoesNotFitError:
    """What the loss says of an output, described by `made`, and these targets, and what to do about it; `part` is one
    tensor of several."""
    head = "y does not fit the loss"
    if isinstance(error, TypeError) and "positional argument" in str(error):
        head = "the loss cannot be called with (output, target)"
    given = _described(batch.layout.labels[batch.layout.inputs :], batch.targets) or "y is None, no target"
    return BatchDoesNotFitError(f"{head}. {given}, the model's output {made}. {_tried(samples)} {reason(error)}"
                                f"{_at(''.join(lines_of(error)[-1:]))}{advice(str(error), batch, made, part)}")


def _at(place: str) -> str:
    return f" ({place.removeprefix(', ').strip()})" if place else ""


def _tried(samples: int) -> str:
    """Where the sizes in torch's message come from."""
    return "Tried on two samples:" if samples == SAMPLES else f"Tried on {samples} samples:"


def _goes_through(loss: Callable[..., Tensor], output: Any, wanted: Any) -> bool:
    try:
        loss_at(loss, output, wanted)
    except Exception:
        return False
    return True


def _described(labels: Sequence[str], tensors: Sequence[Tensor]) -> str:
    return " and ".join(f"{name} is {shown(item)} {item.dtype}" for name, item in zip(labels, tensors, strict=False))


def _of_batch(output: Tensor, samples: int) -> str:
    """The shape of what so many samples give, in terms of N."""
    if not output.dim() or not len(output) or len(output) % samples:
        return shown(output)
    first = "N" if len(output) == samples else f"{len(output) // samples}N"
    return "[" + ", ".join([first, *map(str, output.shape[1:])]) + "]"


def reason(error: BaseException) -> str:
    """The first line of torch's message, and its type."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300] if text else ''}"
