"""Random draws that are the same in a model and in its program, though one of them draws more, or by other kernels.

A generator is one row of numbers: where the model draws something that its loss does not depend on, all that follows is
other numbers in the program. So each draw is given a seed of its own, by the operation, its form, and how many like it
came before; and what torch's own table takes apart for a graph is taken apart here.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hbpcompiler.rules.shared.torch_operations import DRAWN_APART
from hbpcompiler.system.seeded import seed_global

Form = tuple[Any, ...]
_FIRST = 2**40
"""Seeds that stand for how often each form has been drawn; those of draws are smaller."""


class ByForm(TorchDispatchMode):
    """Meanwhile draws from the global generators begin from seeds by their form."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.device = device
        self.drawn: dict[Form, list[Tensor]] = {}
        self._counts: list[Mapping[Form, int]] = []
        self._stand({})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if func.overloadpacket in DRAWN_APART:
            with self:
                return torch._decomp.decomposition_table[func](*args, **kwargs)
        name = func.name().partition("::")[2].partition(".")[0].removesuffix("_functional").rstrip("_")
        form = (name, *_shape(args))
        counts = self._standing()
        seed_global(zlib.crc32(repr((form, counts.get(form, 0))).encode()), self.device)
        result = func(*args, **kwargs)
        self.drawn.setdefault(form, []).append((result[0] if isinstance(result, tuple) else result).detach().clone())
        self._stand({**counts, form: counts.get(form, 0) + 1})
        return result

    def _stand(self, counts: Mapping[Form, int]) -> None:
        """The generator itself says where one stands, so that a checkpoint which puts it back draws the same again."""
        self._counts.append(counts)
        seed_global(_FIRST + len(self._counts) - 1, self.device)

    def _standing(self) -> Mapping[Form, int]:
        place = torch.default_generator.initial_seed() - _FIRST
        return self._counts[place] if 0 <= place < len(self._counts) else {}


def _shape(args: Any) -> tuple[int, ...]:
    """Of the first tensor, or the first sizes."""
    for given in args:
        if isinstance(given, Tensor):
            return tuple(given.shape)
        if isinstance(given, list | tuple):
            return tuple(given)
    return tuple(given for given in args if isinstance(given, int))
