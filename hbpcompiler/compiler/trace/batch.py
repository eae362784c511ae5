"""A batch as the user passes it: (X, y), (X1, X2, y), ((X1, X2), y) or ({"name": X, ...}, y); y may be several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hbpcompiler.compiler.trace.conditions.layouts import Order, laid_out, orders_of
from hbpcompiler.compiler.trace.containers import StrangerError, Structure, take_apart
from hbpcompiler.errors import InputTypeError

_PLACES = {"args": 0, "kwargs": 1, "target": 2}


@dataclass(frozen=True)
class Layout:
    """Where a batch's tensors belong: in forward's arguments by position or by name, and in the target."""

    structure: Structure
    """of (positional arguments, arguments by name, target)"""
    identity: str
    labels: tuple[str, ...]
    """How messages name each tensor: "X", "X2", "X['input_ids']", "y[0]"."""
    names: tuple[str, ...]
    """How the generated file would name it: "x", "x2", "input_ids", "y_0"."""
    inputs: int
    """How many of the tensors are inputs; the others are the target's."""

    def build(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Arguments by position and by name, and the target, of these tensors."""
        built: tuple[tuple[Any, ...], dict[str, Any], Any] = self.structure.build(tensors)
        return built


@dataclass(frozen=True)
class Batch:
    """The tensors of a batch, inputs first, and their layout."""

    tensors: tuple[Tensor, ...]
    layout: Layout
    orders: tuple[Order, ...] | None = None
    """How copies of the tensors lie, where the model's code asks for it; None: as new tensors do."""

    @cached_property
    def samples(self) -> int:
        return self.tensors[0].shape[0]

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """`count` samples of each tensor, copied: the first ones, in a circle if there are fewer; zeros if none."""
        if not self.samples:
            return tuple(tensor.new_zeros(count, *tensor.shape[1:]) for tensor in self.tensors)
        return self._laid_out([tensor.detach()[torch.arange(count, device=tensor.device) % self.samples]
                               for tensor in self.tensors])

    def copies(self) -> tuple[Tensor, ...]:
        """Of the tensors, without a history."""
        return self._laid_out([nn.Parameter(tensor.detach().clone(), requires_grad=False)
                               if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
                               for tensor in self.tensors])

    def _laid_out(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.orders is None:
            return tuple(tensors)
        return tuple(laid_out(tensor, order) for tensor, order in zip(tensors, self.orders, strict=True))

    def of(self, tensors: Sequence[Tensor]) -> Batch:
        """Other tensors in their places."""
        return Batch(tuple(tensors), self.layout, self.orders)

    def keeping_order(self) -> Batch:
        """The same, of which copies lie as the tensors do."""
        return Batch(self.tensors, self.layout, orders_of(self.tensors))

    @cached_property
    def form(self) -> Any:
        """What one program serves: everything about the batch but its size and its numbers."""
        return self.layout.identity, tuple((item.shape[1:], item.dtype, item.device, type(item))
                                           for item in self.tensors)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As a call takes them."""
        by_position, by_name, target = self.layout.build(self.tensors)
        return (by_name, target) if by_name else (*by_position, target)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.tensors[: self.layout.inputs]

    @property
    def targets(self) -> tuple[Tensor, ...]:
        return self.tensors[self.layout.inputs :]


def serves_order(orders: tuple[Order, ...] | None, batch: Batch) -> bool:
    """Whether a batch lies so, or that is not asked."""
    return orders is None or orders == orders_of(batch.tensors)


def _holds_batches(given: Any) -> bool:
    """Whether it is a loader, or a list of batches."""
    if isinstance(given, tuple | list):
        return bool(given) and all(isinstance(item, tuple | list | Mapping) for item in given)
    return hasattr(given, "__iter__") and not isinstance(given, Tensor | Mapping | str)


def batch_of(arguments: Sequence[Any]) -> Batch:
    """The batch that a call's arguments are: inputs, then the target.

    A dict holds forward's arguments by name, a tuple or list those by position. None, numbers and texts among them are
    passed on as they are, as is a target that is None: the loss needs none. Raises InputTypeError for anything else
    that is no tensor.
    """
    if len(arguments) < 2:
        told = "1 argument was given" if arguments else "no arguments were given"
        if arguments and _holds_batches(arguments[0]):
            raise InputTypeError(f"a batch is (X, y): inputs and target, but {told}, a {type(arguments[0]).__name__} "
                                 "of batches: give one batch at a time, compiled(*batch), or hbp.accumulate(compiled, "
                                 "loader) for their total; a spectrum is that of one batch")
        if arguments and isinstance(arguments[0], tuple | list) and len(arguments[0]) > 1:
            raise InputTypeError(f"a batch is two arguments or more, (X, y), but {told}, a "
                                 f"{type(arguments[0]).__name__} of {len(arguments[0])}: with a star before it, "
                                 "compiled(*batch), it is a batch")
        if arguments and isinstance(arguments[0], Mapping):
            raise InputTypeError(f"a batch is (X, y): inputs and target, but {told}, a dict of "
                                 f"{', '.join(map(str, arguments[0]))}: the target goes apart, compiled(inputs, y), "
                                 "with a dict of forward's arguments alone")
        raise InputTypeError(f"a batch is (X, y): inputs and target, but {told}; a loss that takes no "
                             "target is called with None")
    if all(isinstance(item, Tensor) for item in arguments):
        return Batch(tuple(arguments), _plain(len(arguments) - 1))
    *given, target = arguments
    names: tuple[str, ...] = ("X",)
    args, kwargs = tuple(given), {}
    if len(given) > 1:
        names = tuple(f"X{number + 1}" for number in range(len(given)))
    elif isinstance(given[0], Mapping):
        args, kwargs = (), dict(given[0])
        if not all(isinstance(key, str) for key in kwargs):
            raise InputTypeError("X is a dict, so its keys must be the names of forward's arguments")
    elif isinstance(given[0], tuple | list) and not hasattr(given[0], "_fields"):
        args = tuple(given[0])
        names = tuple(f"X[{number}]" for number in range(len(args)))
    try:
        tensors, structure = take_apart((args, kwargs, target))
    except StrangerError as stranger:
        label = _stranger_label(stranger.path, names)
        array = f": torch.from_numpy({label})" if type(stranger.item).__module__ == "numpy" else ""
        raise InputTypeError(f"{label} must be a tensor, not {type(stranger.item).__name__}{array}") from None
    layout = _layout(structure, names)
    for name, item, count in (("X", given[0], layout.inputs), ("y", target, len(tensors) - layout.inputs)):
        if count == 0 and (name == "X" or target is not None):
            made = f": torch.tensor({name})" if isinstance(item, list | int | float) and item != [] else ""
            raise InputTypeError(f"{name} must be a tensor, or a tuple or dict of tensors, not {type(item).__name__}"
                                 + made)
    return Batch(tuple(tensors), layout)


@cache
def _plain(count: int) -> Layout:
    """That of `count` tensors and a target tensor."""
    anything = Tensor()
    _, structure = take_apart(((anything,) * count, {}, anything))
    return _layout(structure, ("X",) if count == 1 else tuple(f"X{number + 1}" for number in range(count)))


def _layout(structure: Structure, names: Sequence[str]) -> Layout:
    labels, wishes = [], []
    paths = structure.paths()
    for place, *rest in paths:
        if place == _PLACES["args"]:
            first, *inner = rest
            labels.append(names[int(first)] + _shown(inner))
            wishes.append("_".join(["x" if first == 0 else f"x{int(first) + 1}", *map(str, inner)]))
        elif place == _PLACES["kwargs"]:
            labels.append("X" + _shown(rest))
            wishes.append("_".join(map(str, rest)))
        else:
            labels.append("y" + _shown(rest))
            wishes.append("_".join(["y", *map(str, rest)]))
    inputs = sum(path[0] != _PLACES["target"] for path in paths)
    return Layout(structure, structure.identity(), tuple(labels), tuple(wishes), inputs)


def _shown(path: Sequence[str | int]) -> str:
    return "".join(f"[{key!r}]" for key in path)


def _stranger_label(path: str, names: Sequence[str]) -> str:
    """The stranger's place, "[0][1]['mask']", in the user's terms."""
    place, _, rest = path.removeprefix("[").partition("]")
    if int(place) == _PLACES["args"]:
        first, _, inner = rest.removeprefix("[").partition("]")
        return names[int(first)] + inner
    return ("X" if int(place) == _PLACES["kwargs"] else "y") + rest
