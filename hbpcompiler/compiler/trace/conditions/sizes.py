"""For which batch sizes a trace holds: the conditions on N under which the model's and the loss's code went its way.

`if len(x) > 8:` gives one graph for small batches and another for large ones; torch.export follows one of the two and
notes the condition.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_symbols

from hbpcompiler.compiler.trace.conditions.one_sample import WayOfOne, ways_of_one
from hbpcompiler.compiler.trace.fx_graph.numbers import ROUNDING
from hbpcompiler.compiler.trace.source.source import OUTERMOST

SMALL, LARGEST = range(1, 257), 2**40
"""Batches of which each is asked whether a condition holds for it, beside those around the condition's own numbers."""

TORCHS = "code of torch's own that no line of yours called"


@dataclass(frozen=True)
class Sizes:
    """All batch sizes that fulfil these conditions."""

    conditions: tuple[Any, ...] = ()
    """torch's guards, each on one symbolic size, and ways of a batch of one (see `one_sample`)."""

    def include(self, samples: int) -> bool:
        """Whether the trace holds for so many samples; an empty batch goes the way of a batch of one."""
        return all(_holds(guard, max(samples, 1)) for guard in self.conditions)

    def fixing(self) -> list[str]:
        """The user's lines of code that fix the size: no two sizes fulfil the condition, and not since a product is
        rounded, of which each whole number has a program of its own."""
        found = {_line(guard) for guard in self.conditions if not _hold_for_two(guard) and not _rounds(guard)}
        return sorted(found - {TORCHS} or found)

    def excluding(self, samples: int) -> list[str]:
        """The lines of code that go another way for so many samples."""
        return sorted({_line(guard) for guard in self.conditions if not _holds(guard, max(samples, 1))})


EVERY = Sizes()


def sizes_of(program: Any) -> Sizes:
    """Those for which an ExportedProgram holds. That torch takes no batch of one for a trace is no condition, unless
    the user's code compares with one."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    modes = [value.fake_mode for value in values if hasattr(value, "fake_mode")]
    environment = modes[0].shape_env if modes else None
    # Steps in memory have symbols of their own; a program serves batches that have the same (see `asked`).
    steps = {symbol for value in values if isinstance(value, Tensor) for step in value.stride()
             for symbol in free_symbols(step)} - {symbol for value in values if isinstance(value, Tensor)
                                                  for length in value.shape for symbol in free_symbols(length)}
    found = (*getattr(environment, "guards", ()), *ways_of_one(environment))
    return Sizes(tuple(guard for guard in found if len(guard.expr.free_symbols) == 1
                       and not guard.expr.free_symbols & steps))


def is_always_fulfilled(guard: Any) -> bool:
    """Whether a condition holds for batches of every size."""
    return all(_holds(guard, size) for size in _tried(guard))


def _rounds(guard: Any) -> bool:
    """Whether it is int(0.7 * len(x)) that is asked."""
    return any(type(part).__name__ in ROUNDING for part in guard.expr.atoms(sympy.Function))


def _hold_for_two(guard: Any) -> bool:
    holding = (size for size in _tried(guard) if _holds(guard, size))
    return len(list(itertools.islice(holding, 2))) == 2


def _tried(guard: Any) -> list[int]:
    """Sizes among which there is one on each side of the condition: `3 * N > 1000` turns at 334."""
    numbers = {abs(int(number)) for number in guard.expr.atoms(sympy.Integer)} - {0}
    turns = numbers | {large // small for large in numbers for small in numbers}
    near = {turn + beside for turn in turns for beside in (-1, 0, 1)}
    far = {2**power for power in range(9, 41)}
    return [*SMALL, *sorted(size for size in near | far if SMALL[-1] < size <= LARGEST)]


def _holds(guard: Any, size: int) -> bool:
    (symbol,) = guard.expr.free_symbols
    return bool(guard.expr.subs(symbol, size) == sympy.true)


def _line(guard: Any) -> str:
    if isinstance(guard, WayOfOne):
        return guard.line
    frame = guard.sloc.maybe_user_loc or guard.sloc.framework_loc
    if getattr(frame, "filename", "") == OUTERMOST:
        return TORCHS
    return f"{frame.filename}:{frame.lineno}: {frame.line}" if hasattr(frame, "lineno") else str(frame)
