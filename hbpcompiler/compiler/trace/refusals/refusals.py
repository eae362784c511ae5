"""What a trace cannot follow, refused where the user's code does it: derivatives inside a model, plain numbers made of
the batch's size, values handed to numpy."""

from __future__ import annotations

import linecache
import math
import os
import random
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor, nn
from torch._functorch import eager_transforms
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.compiler.trace.source.source import OUTERMOST, LossModule, is_library, of_python
from hbpcompiler.errors import ModelError

MEAN_OF_NONE = ("a mean of what a mask picks is taken on a condition that there are rows; write a sum over "
                "mask.sum().clamp(min=1), without the condition")
CONTROL = ("control flow depends on the values of tensors, by this line or within what it calls, which a program "
           "cannot follow; use torch.where, or compute the branch outside the model")
PICKED = ("how many rows a mask picks is asked for here, by this line or within it, and a trace cannot know it; "
          "keep all rows and let the others count for nothing, as in (losses * mask).sum() / mask.sum(), or pick whole "
          "samples or numbers, as in cross_entropy(output[mask], target[mask])")
NUMBER = ("a number is made of a tensor's values, which a compiled program cannot follow; keep it a tensor, or compute "
          "it outside the model")
DERIVATIVES = ("a derivative is taken inside (torch.autograd.grad, backward, torch.func), which a compiled program "
               "cannot follow; write that derivative out as operations, or take it outside the model")
LISTED = ("values go into a list of Python's (tolist), where no derivative and no trace can follow; keep them in a "
          "tensor, and let it pick, mask or weigh: x * (torch.arange(x.shape[1]) < lengths[:, None])")
NUMPY = "values go to numpy, where no derivative and no trace can follow; write it in torch"

RENORMED = ("max_norm changes the embedding's weight in place whenever it is read, which a program never does; leave "
            "max_norm out, and do the same before each call: with torch.no_grad(): torch.embedding_renorm_("
            "embedding.weight, indices.flatten(), max_norm, 2.0)")
DRAWN = ("torch.normal lets no derivative through: torch's gradient of its mean and its deviation is zero; write "
         "mean + std * torch.randn_like(mean), or torch.normal(mean.detach(), std) where nothing is to pass")
DIFFERENCES = ("torch.gradient takes the lengths of all axes as plain numbers; write the differences with slices, as "
               "in torch.cat([h[:, 1:2] - h[:, :1], (h[:, 2:] - h[:, :-2]) / 2, h[:, -1:] - h[:, -2:-1]], 1)")
LEAST_SQUARES = ("torch.linalg.lstsq returns tensors whose shapes a trace cannot know; write torch.linalg.solve("
                 "A.mT @ A, A.mT @ B), or torch.linalg.pinv(A) @ B")
SEEDED = ("torch's random generator is seeded or put back here, which a program leaves out: it would draw other "
          "numbers at each call. For the same numbers at each call make a tensor once and keep it (register_buffer); "
          "otherwise seed before the call, or pass generator= to it")
ENTROPY = ("random numbers of the operating system (os.urandom, secrets, uuid4, random.SystemRandom) are taken here, "
           "and a program would repeat one draw for ever; draw with torch (torch.rand, torch.randint), which programs "
           "do at each call, or outside, and pass the number as an input or an attribute")
FUNCTIONS = ("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "erf", "erfc", "exp", "expm1", "lgamma",
             "log", "log10", "log1p", "log2", "sin", "sinh", "tan", "tanh")
"""Those of Python's math that a tensor has as a method of that name."""
OF_SIZE = ("math.{name}() is asked of a number that depends on the batch's size, and gives a plain one, which a "
           "program would have for batches of every size; ask it of a tensor, as in "
           "output.new_full((), len(output)).{name}(), or make the number outside and pass it as an input")

TAKEN_OUT = ("it takes a value out of the trace, by x.data, torch.tensor(x), torch.vmap, a derivative inside or an "
             "in-place change of a parameter's data; use x.detach() or x.clone(), write what torch.vmap maps for the "
             "whole batch, and leave parameters as they are")


ASKED_BY_SIZE = ("a dict, a set or functools.lru_cache is asked by the batch's size, which a program leaves open; make "
                 "what is kept there anew at each call (torch.ones(x.shape[0], 1), say), or keep one of the greatest "
                 "size in a buffer and take x.shape[0] rows of it")


def of_constants(text: str, place: str) -> str:
    """What torch.export says, in its own words, of a tensor that is neither an input nor a buffer, or of what code
    keeps for each size; "" if nothing."""
    for said, words in (("fake tensor in the exported program constant's list", TAKEN_OUT),
                        ("unhashable type: non-nested SymInt", ASKED_BY_SIZE)):
        if said in text:
            return f"{place}: {words}"
    found = re.search(r"Constant (\S+) is mutated in the forward", text)
    if found is None:
        return ""
    owner, _, name = found[1].removeprefix("loss.function.").rpartition(".")  # in the end: of no line
    of_loss = found[1].startswith("loss.")
    if name.startswith("lifted_tensor"):
        return (f": the {'loss' if of_loss else 'model'} writes in place to a tensor that is made elsewhere, a global, "
                "say; make a new one, t = t + 1, or keep it as a buffer, self.register_buffer('t', ...)")
    path = owner.partition(".")[2]
    module = "the loss" if of_loss else f"module {path!r}" if path else "the model"
    return (f": {module} writes in place to its tensor {name!r}, which is no buffer; register it, "
            f"self.register_buffer({name!r}, ...), or make a new one, self.{name} = self.{name} + 1")


class CannotFollowError(Exception):
    """Why a trace ends at the place that raises this, and what to write instead."""


@dataclass(frozen=True)
class Fixing:
    """Where code makes a plain number of the batch's size."""

    line: str
    """file:line: code."""
    space: dict[str, Any]
    """The globals of that code."""


def line_of(frame: FrameType | None) -> str:
    """file:line: code of the innermost frame of the user's; "" if there is none."""
    while frame is not None and frame.f_code.co_filename != OUTERMOST:
        if not is_library(frame.f_code.co_filename):
            return _line(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def lines_of(error: BaseException) -> list[str]:
    """file:line: code of each frame of the user's that an error came through, the innermost last."""
    return [_line(frame.f_code.co_filename, number) for frame, number in traceback.walk_tb(error.__traceback__)
            if not is_library(frame.f_code.co_filename)]


def place_of_error(model: nn.Module, error: BaseException) -> str:
    """The innermost module on the error's stack, or the loss, and the innermost line of the user's own."""
    paths = {id(module): path for path, module in model.named_modules()}
    where = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, LossModule):
            where = " in the loss"
        elif isinstance(owner, nn.Module) and id(owner) in paths:
            path = paths[id(owner)]
            where = f" at module {path!r}" if path else " in the model's forward"
            where += f" ({type(owner).__name__})"
    lines = lines_of(error)
    return where + (f", {lines[-1]}" if lines else "")


def _line(file: str, number: int) -> str:
    return f"{file}:{number}: {linecache.getline(file, number).strip()}"


@contextmanager
def refusals(fixing: list[Fixing]) -> Iterator[None]:
    """Meanwhile what cannot be followed raises CannotFollowError; what makes plain numbers of the batch's size, which
    torch tells only in the end, is added to `fixing`."""

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(size: Any) -> Any:
            caller = sys._getframe(2)  # `replaced` is between
            if size.node.expr.free_symbols and not is_library(caller.f_code.co_filename):
                fixing.append(Fixing(line_of(caller), caller.f_globals))
            return original(size)

        return noted

    each: Callable[[Tensor], Any] = Tensor.__iter__

    def samples(tensor: Tensor) -> Any:
        lengths: tuple[Any, ...] = tuple(tensor.shape) if isinstance(tensor, FakeTensor) else ()
        if lengths and isinstance(lengths[0], SymInt):
            fixing.append(Fixing(line_of(sys._getframe(1)), {}))
        return each(tensor)

    replaces: Callable[..., None] = ShapeEnv._set_replacement

    def fixed(environment: ShapeEnv, size: Any, by: Any, *given: Any, **named: Any) -> None:
        """Where torch's own code fixes it, as that of unbind and split does."""
        if not by.free_symbols:
            fixing.append(Fixing(line_of(sys._getframe(1)), {}))
        replaces(environment, size, by, *given, **named)

    with ExitStack() as stack:
        stack.enter_context(replaced(ShapeEnv, "_set_replacement", fixed))
        derivatives: list[tuple[Any, str]] = [
            (torch.autograd, "grad"), (torch.autograd, "backward"),
            (eager_transforms, "grad_increment_nesting"), (eager_transforms, "jvp_increment_nesting")]
        for owner, name in derivatives:
            stack.enter_context(replaced(owner, name, _refusing(DERIVATIVES)))
        stack.enter_context(replaced(Tensor, "numpy", _refusing(NUMPY)))
        stack.enter_context(replaced(FakeTensor, "tolist", _of_samples(FakeTensor.tolist)))
        stack.enter_context(replaced(torch, "embedding_renorm_", _refusing(RENORMED)))
        stack.enter_context(replaced(torch, "normal", _of_constants(torch.normal)))
        stack.enter_context(replaced(torch, "gradient", _refusing(DIFFERENCES)))
        stack.enter_context(replaced(torch.linalg, "lstsq", _refusing(LEAST_SQUARES)))
        for owner, name in ((SymInt, "__int__"), (SymInt, "__index__"), (SymFloat, "__float__"),
                            (SymFloat, "__int__")):
            stack.enter_context(replaced(owner, name, noting(getattr(owner, name))))
        stack.enter_context(replaced(Tensor, "__iter__", samples))
        stack.enter_context(_no_seeds())
        for name in FUNCTIONS:
            stack.enter_context(replaced(math, name, _of_plain_numbers(name)))
        for owner, name in ((os, "urandom"), (random, "_urandom")):
            stack.enter_context(replaced(owner, name, _not_by_users(getattr(owner, name))))
        yield


def _of_samples(listed: Callable[[FakeTensor], Any]) -> Callable[[FakeTensor], Any]:
    """What has a row for each sample is no list; other values may be known, or be asked for."""

    def refused(tensor: FakeTensor) -> Any:
        lengths: tuple[Any, ...] = tuple(tensor.shape)
        if lengths and isinstance(lengths[0], SymInt):
            raise CannotFollowError(LISTED)
        return listed(tensor)

    return refused


def _of_plain_numbers(name: str) -> Callable[..., Any]:
    """A function of Python's math, which makes a plain number of a size."""
    own: Callable[..., Any] = getattr(math, name)

    def called(*numbers: Any) -> Any:
        if any(isinstance(number, SymInt | SymFloat) and number.node.expr.free_symbols for number in numbers):
            raise CannotFollowError(OF_SIZE.format(name=name))
        return own(*numbers)

    return called


class _NotSeeded:
    """In place of torch's generator for all that torch.manual_seed, fork_rng and their kin do with it."""

    def __init__(self, own: torch.Generator) -> None:
        self._own, self._thread = own, threading.current_thread()

    def __getattr__(self, name: str) -> Any:
        seeds = name in ("manual_seed", "seed", "set_state") and threading.current_thread() is self._thread
        return _refusing(SEEDED) if seeds else getattr(self._own, name)


@contextmanager
def _no_seeds() -> Iterator[None]:
    """Meanwhile what sets torch's generators raises CannotFollowError. What does so by other ways, as
    torch.default_generator.manual_seed, is seen by its seed; their states other threads may move that draw."""
    own = torch.default_generator
    with ExitStack() as stack:
        stack.enter_context(replaced(torch.random, "default_generator", _NotSeeded(own)))
        for name in ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state", "set_rng_state_all"):
            for owner in (torch.cuda, torch.cuda.random):
                stack.enter_context(replaced(owner, name, _refusing(SEEDED)))
        before = own.initial_seed()
        yield
        if own.initial_seed() != before:
            raise CannotFollowError(SEEDED.replace("here", "in the model or the loss"))


def _not_by_users(entropy: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """But for a library that is no part of Python's, which names a file or a run by it."""

    def taken(count: int) -> bytes:
        frame = sys._getframe(2)  # `replaced` is between
        while frame.f_back is not None and of_python(frame.f_code.co_filename):
            frame = frame.f_back
        if "-packages" not in frame.f_code.co_filename and not is_library(frame.f_code.co_filename):
            raise CannotFollowError(ENTROPY)
        return entropy(count)

    return taken


@contextmanager
def classes_given() -> Iterator[None]:
    """Meanwhile F.one_hot without a number of classes raises ModelError: torch takes it from the batch's labels, and of
    another batch another."""
    plain: Callable[..., Tensor] = nn.functional.one_hot

    def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
        if isinstance(num_classes, int) and num_classes == -1:
            raise ModelError("F.one_hot takes the number of classes from the labels of the batch, which differs from "
                             "batch to batch; pass it, as in F.one_hot(y, num_classes=10) or "
                             f"F.one_hot(y, output.shape[-1]): {line_of(sys._getframe(1))}")
        return plain(tensor, num_classes)

    with replaced(nn.functional, "one_hot", one_hot):
        yield


def _of_constants(normal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and any(isinstance(given, Tensor) and given.requires_grad
                                           for given in (*args, *kwargs.values())):
            raise CannotFollowError(DRAWN)
        return normal(*args, **kwargs)

    return drawn


def _refusing(reason: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise CannotFollowError(reason)

    return refuse
