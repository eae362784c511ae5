"""The call that a spectrum came from, to be made again: the same batch, arguments, random draws and numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hbpcompiler.changes import Snapshot, refuse_changed
from hbpcompiler.compiler.prove.draws import Draws, drawing
from hbpcompiler.errors import InputError

NEAR = 0.55
"""Two programs of one model return the same output to this power of the dtype's rounding."""


class Call:
    """One call of (X, y), which can be repeated while nothing that it reads has changed."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], batch: Sequence[Any],
                 generator: torch.Generator | None, arguments: Mapping[str, Any], device: torch.device) -> None:
        self.model, self.loss = model, loss
        self.batch = tuple(batch)
        self.arguments = dict(arguments)
        self._draws = Draws.now(device) if generator is None else None
        self._generator = None if generator is None else _copied(generator)
        self._snapshot = Snapshot(self._read())
        self._changed: list[str] = []
        """What had changed when this was copied."""

    def __getstate__(self) -> dict[str, Any]:
        generator = None if self._generator is None else (self._generator.device, self._generator.get_state())
        return {**self.__dict__, "_generator": generator, "_snapshot": None,
                "_changed": self._changed + self._snapshot.changed(self._read())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._generator is not None:
            device, numbers = state["_generator"]
            self._generator = torch.Generator(device).set_state(numbers)
        self._snapshot = Snapshot(self._read())

    def _read(self) -> dict[str, Tensor]:
        """Every tensor that the call reads, by a name for messages."""
        leaves = pytree.tree_leaves((self.batch, self.arguments))
        loss = self.loss.named_parameters() if isinstance(self.loss, nn.Module) else ()
        held = self.loss.named_buffers() if isinstance(self.loss, nn.Module) else ()
        return {
            **{f"parameter {name!r}": value for name, value in self.model.named_parameters()},
            **{f"buffer {name!r}": value for name, value in self.model.named_buffers()},
            **{f"{name!r} of the loss": value for name, value in (*loss, *held)},
            **{f"tensor {number + 1} of the batch": value for number, value in enumerate(leaves)
               if isinstance(value, Tensor)},
        }

    @contextlib.contextmanager
    def again(self, what: str) -> Iterator[dict[str, Any]]:
        """The arguments to call with; random draws inside are the first time's. InputError if numbers have changed."""
        refuse_changed(self._changed + self._snapshot.changed(self._read()), what)
        if self._draws is not None:
            with drawing(self._draws):
                yield dict(self.arguments)
        else:
            assert self._generator is not None
            yield {**self.arguments, "generator": _copied(self._generator)}


def _copied(generator: torch.Generator) -> torch.Generator:
    """One that draws the same."""
    return torch.Generator(generator.device).set_state(generator.get_state())


def check_same_output(before: Any, now: Any, what: str) -> None:
    """InputError if the model returns something else than before, though its tensors are what they were."""
    for one, other in zip(_numbers(before), _numbers(now), strict=True):
        near = torch.finfo(one.dtype).eps ** NEAR * max(float(one.abs().max()), torch.finfo(one.dtype).tiny)
        if one.shape != other.shape or not float((one - other).abs().max()) <= near:
            raise InputError(f"the model returns something else than when the spectrum was computed, and {what} would "
                             "be those of neither: its parameters, attributes or mode have changed, or it draws random "
                             "numbers that torch does not. Compute the spectrum anew")


def _numbers(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
