"""What code asks a batch beside its numbers: how they lie in memory, whether it has a history, is a view, is pinned.

A trace has one answer. So a program serves batches that lie as the one it was made for, where that is asked at all; and
of what else is asked, those alone that answer as new tensors do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from hbpcompiler.compiler.trace.conditions.layouts import lies_plainly
from hbpcompiler.compiler.trace.refusals.refusals import CannotFollowError, line_of
from hbpcompiler.compiler.trace.source.source import is_library

ORDER = "order"
_ADDRESS = ("code asks where in memory a tensor lies, or how often it was written to ({name}), which is another answer "
            "for every batch, and a program would have one; leave it out")


@dataclass(frozen=True)
class _Question:
    """What batches are asked for by one or several names."""

    is_new: Callable[[Tensor], bool]
    """Whether a tensor answers as a new one does."""
    instead: str
    """What to pass instead."""


_QUESTIONS = {
    "history": _Question(lambda tensor: not tensor.requires_grad, ".detach()"),
    "view": _Question(lambda tensor: not tensor._is_view() and tensor.storage_offset() == 0, ".clone()"),
    "pinned": _Question(lambda tensor: not tensor.is_pinned(), ".clone()"),
    "attributes": _Question(lambda tensor: not vars(tensor), ".clone(), and what it has as further inputs"),
    "inference": _Question(lambda tensor: not tensor.is_inference(), ".clone(), outside of torch.inference_mode()"),
}
_OF_NAMES: dict[str, str] = {
    "stride": ORDER, "is_contiguous": ORDER, "is_non_overlapping_and_dense": ORDER,
    "requires_grad": "history", "is_leaf": "history", "grad_fn": "history", "grad": "history",
    "retains_grad": "history", "storage_offset": "view", "_base": "view", "_is_view": "view",
    "is_pinned": "pinned", "is_inference": "inference",
}
_ADDRESSES = ("data_ptr", "untyped_storage", "storage", "_typed_storage", "_version")


@dataclass(frozen=True)
class Asked:
    """What a trace was asked, by the kind of question: file:line: code."""

    lines: Mapping[str, str]

    @property
    def order(self) -> bool:
        """Whether code asks how numbers lie in memory."""
        return ORDER in self.lines

    def refused(self, labels: Sequence[str], tensors: Sequence[Tensor]) -> str:
        """Why a batch gets no answer that is right; "" if it does."""
        for kind, question in _QUESTIONS.items():
            for label, tensor in zip(labels, tensors, strict=True) if kind in self.lines else ():
                if not question.is_new(tensor):
                    return ("the model or the loss asks a tensor for what is not its numbers, and a program has the "
                            f"answer of a new one, which {label} is not; pass {label}{question.instead}: "
                            f"{self.lines[kind]}")
        return ""

    def asks_for_order(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a trace of new tensors is none for these."""
        return self.order and not all(map(lies_plainly, tensors))


NOTHING = Asked({})


@contextmanager
def questions(lines: dict[str, str]) -> Iterator[None]:
    """Around the user's code while it is traced: `lines` are what Asked is made of."""

    def missing(tensor: Any, name: str) -> Any:
        frame = sys._getframe(1)
        if not is_library(frame.f_code.co_filename):
            lines.setdefault("attributes", line_of(frame))
        raise AttributeError(f"{type(tensor).__name__!r} object has no attribute {name!r}")

    def dim_order(tensor: Tensor, **named: Any) -> Any:  # torch asks for strides in its own code
        frame = sys._getframe(1)
        if not is_library(frame.f_code.co_filename):
            lines.setdefault(ORDER, line_of(frame))
        return Tensor.dim_order(tensor, **named)

    stand_ins: Any = FakeTensor
    stand_ins.__getattr__, stand_ins.dim_order = missing, dim_order
    try:
        with _Questions(lines):
            yield
    finally:
        del stand_ins.__getattr__, stand_ins.dim_order


class _Questions(TorchFunctionMode):
    def __init__(self, lines: dict[str, str]) -> None:
        super().__init__()
        self.lines = lines

    def __torch_function__(self, function: Callable[..., Any], types: Sequence[type], arguments: Any = (),
                           named: Any = None) -> Any:
        name = _name_of(function)
        if (name in _OF_NAMES or name in _ADDRESSES) and arguments and isinstance(arguments[0], FakeTensor):
            frame = sys._getframe(1)
            if not is_library(frame.f_code.co_filename):
                if name in _ADDRESSES:
                    raise CannotFollowError(_ADDRESS.format(name=name))
                self.lines.setdefault(_OF_NAMES[name], line_of(frame))
        return function(*arguments, **(named or {}))


def _name_of(function: Any) -> str:
    """Of a method, or of the attribute that is read."""
    name = getattr(function, "__name__", "")
    return getattr(getattr(function, "__self__", None), "__name__", "") if name == "__get__" else name
