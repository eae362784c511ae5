"""For which batch sizes a trace holds: the conditions on N under which the model's and the loss's code went its way.

`if len(x) > 8:` gives one graph for small batches and another for large ones; torch.export follows one of the two and
notes the condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy

from hbpcompiler.compiler.trace.source import OUTERMOST

OTHERS = (2, 3, 5, 11, 32, 100)
"""Sizes beside the one that is traced: a condition that holds for none of them fixes the size."""

TORCHS = "code of torch's own that no line of yours called"


@dataclass(frozen=True)
class Sizes:
    """All batch sizes that fulfil these conditions."""

    conditions: tuple[Any, ...] = ()
    """torch's guards, each on one symbolic size."""

    def include(self, samples: int) -> bool:
        """Whether the trace holds for so many samples; an empty batch goes the way of a batch of one."""
        return all(_holds(guard, max(samples, 1)) for guard in self.conditions)

    def fixing(self) -> list[str]:
        """The user's lines of code that fix the size."""
        found = {_line(guard) for guard in self.conditions if not any(_holds(guard, size) for size in OTHERS)}
        return sorted(found - {TORCHS} or found)

    def excluding(self, samples: int) -> list[str]:
        """The lines of code that go another way for so many samples."""
        return sorted({_line(guard) for guard in self.conditions if not _holds(guard, max(samples, 1))})


EVERY = Sizes()


def sizes_of(program: Any) -> Sizes:
    """Those for which an ExportedProgram holds. That torch takes no batch of one for a trace is no condition."""
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    modes = [value.fake_mode for value in values if hasattr(value, "fake_mode")]
    environment = modes[0].shape_env if modes else None
    return Sizes(tuple(guard for guard in getattr(environment, "guards", ()) if len(guard.expr.free_symbols) == 1))


def _holds(guard: Any, size: int) -> bool:
    (symbol,) = guard.expr.free_symbols
    return bool(guard.expr.subs(symbol, size) == sympy.true)


def _line(guard: Any) -> str:
    frame = guard.sloc.maybe_user_loc or guard.sloc.framework_loc
    if getattr(frame, "filename", "") == OUTERMOST:
        return TORCHS
    return f"{frame.filename}:{frame.lineno}: {frame.line}" if hasattr(frame, "lineno") else str(frame)
