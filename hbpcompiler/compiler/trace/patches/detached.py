"""What a user's code says of derivatives where a trace does not see it: `x.data`, torch.inference_mode(), and within an
autograd.Function's forward, which has none."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.compiler.trace.source.source import is_library
from hbpcompiler.errors import ModelError


@contextmanager
def seen_by_a_trace() -> Iterator[None]:
    """Meanwhile inference_mode() is no_grad(), `x.data` is x.detach(), and in functions both are nothing."""
    with replaced(torch.inference_mode, "__enter__", _enter_without_gradients), \
            replaced(torch.inference_mode, "__exit__", _leave_without_gradients), \
            _without_blocks_in_functions(), _data_detached():
        yield


def _enter_without_gradients(block: Any) -> None:
    """In place of `with torch.inference_mode():`, which a trace does not see: it sees gradients turned off."""
    block.before = torch.is_grad_enabled()
    torch.set_grad_enabled(block.before and not block.mode)


def _leave_without_gradients(block: Any, *error: Any) -> None:
    torch.set_grad_enabled(block.before)


def _not_detached(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """In an autograd.Function's forward nothing has a derivative anyway, and what backward gives is its function's."""
    def detach(tensor: Tensor) -> Tensor:
        users = not is_library(sys._getframe(2).f_code.co_filename)  # `replaced` is between
        return tensor.view_as(tensor) if users else own(tensor)

    return detach


@contextmanager
def _without_blocks_in_functions() -> Iterator[None]:
    """Meanwhile no block in an autograd.Function's forward turns gradients off or on: they are off there anyway, and
    the trace would take the end of such a block for gradients off in all that follows. It is what Function.apply calls
    that changes, because people keep `swish = Swish.apply` from before."""
    function: Any = torch.autograd.Function
    in_python = isinstance(vars(function)["apply"], classmethod)  # up to 2.13; in 2.14 it is the C function itself
    base: Any = torch.autograd.function._SingleLevelFunction if in_python else function
    before = vars(base).get("apply")
    own, thread = before or vars(torch._C._FunctionBase)["apply"], threading.current_thread()

    def apply(called: Any, *arguments: Any, **named: Any) -> Any:
        bound = own.__get__(None, called)
        if threading.current_thread() is not thread:
            return bound(*arguments, **named)
        with replaced(torch._C, "_set_grad_enabled", lambda mode: None), \
                replaced(Tensor, "detach", _not_detached(Tensor.detach)):
            return bound(*arguments, **named)

    base.apply = classmethod(apply)  # not by `replaced`: it is bound to the class that is called
    try:
        yield
    finally:
        if before is None:
            del base.apply
        else:
            base.apply = before


@contextmanager
def _data_detached() -> Iterator[None]:
    """Meanwhile `x.data` in the user's code is `x.detach()`, which a trace sees; ModelError where it is assigned to."""
    own: Any = vars(torch._C.TensorBase)["data"]
    thread = threading.current_thread()

    def users() -> bool:
        return threading.current_thread() is thread and not is_library(sys._getframe(2).f_code.co_filename)

    def read(tensor: Tensor) -> Tensor:
        return tensor.detach() if users() else own.__get__(tensor)

    def write(tensor: Tensor, value: Tensor) -> None:
        if users():
            file, number = sys._getframe(1).f_code.co_filename, sys._getframe(1).f_lineno
            raise ModelError(f"{file}:{number}: {linecache.getline(file, number).strip()}: other numbers are put into "
                             "a tensor by .data = ..., which a program never does; change parameters outside the "
                             "model, or compute another tensor, as in w = w.clamp(0)")
        own.__set__(tensor, value)

    tensors: Any = Tensor
    tensors.data = property(read, write)
    try:
        yield
    finally:
        del tensors.data
