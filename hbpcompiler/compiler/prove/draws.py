"""The random generators that a forward pass may draw from, so that two runs can draw the same."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.prove.by_form import ByForm
from hbpcompiler.system.threads import TRACING


@dataclass(frozen=True)
class Draws:
    """States of torch's global generators, Python's, and numpy's if it is loaded."""

    torch_states: tuple[Tensor, ...]
    """the CPU's, then that of the device, if it is another"""
    device: torch.device
    python: Any
    numpy: Any
    by_form: bool = False
    """Whether each of torch's draws has a seed of its own, in place of these states"""

    @classmethod
    def now(cls, device: torch.device) -> Draws:
        """Where the generators stand."""
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        numpy = sys.modules.get("numpy")
        return cls(tuple(states), device, random.getstate(), numpy.random.get_state() if numpy is not None else None)

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> Draws:
        """Where they stand after each has been given this seed."""
        states = [torch.Generator().manual_seed(seed).get_state()]
        if device.type == "cuda":
            states.append(torch.Generator(device).manual_seed(seed).get_state())
        numpy = sys.modules.get("numpy")
        legacy = numpy.random.RandomState(seed % 2**32).get_state() if numpy is not None else None
        return cls(tuple(states), device, random.Random(seed).getstate(), legacy)

    def restore(self) -> None:
        """Put the generators there."""
        torch.set_rng_state(self.torch_states[0])
        for state in self.torch_states[1:]:
            torch.cuda.set_rng_state(state, self.device)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)

    def torch_drew(self, since: Draws) -> bool:
        """Whether torch's generators stand elsewhere than then."""
        pairs = zip(self.torch_states, since.torch_states, strict=True)
        return not all(torch.equal(own, other) for own, other in pairs)

    def python_drew(self, since: Draws) -> bool:
        """Whether Python's or numpy's generator stands elsewhere than then."""
        return self.python != since.python or _numbers(self.numpy) != _numbers(since.numpy)


def _numbers(state: Any) -> Any:
    """Numpy's state, whose array as bytes: arrays are not compared by ==, and as texts they take a millisecond each and
    leave out what numpy is told not to print."""
    if not isinstance(state, tuple):  # numpy is not loaded, or draws by another generator than its first
        return str(state)
    kind, key, *position = state
    return kind, key.tobytes(), *position


@contextmanager
def drawing(draws: Draws) -> Iterator[ByForm | None]:
    """Draw from there on inside, and put the generators back afterwards. What is drawn by form can be seen. Other
    threads that do so wait: they would draw from here, and put back what they had found in the middle of this."""
    with TRACING:
        before = Draws.now(draws.device)
        draws.restore()
        try:
            if draws.by_form:
                with ByForm(draws.device) as forms:
                    yield forms
            else:
                yield None
        finally:
            before.restore()
