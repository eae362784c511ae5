"""What calls do that are alike is counted once: a network of a hundred layers has few kinds of calls.

torch works out on meta tensors, in Python, what most operations make, and helpers of generated files make many small
ones: to mirror a large matrix takes a hundred calls.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from hbpcompiler.compiler.cost.meter import Counts, Meter
from hbpcompiler.compiler.program.alike_calls import Made, kind_of_call, made_again, made_of
from hbpcompiler.compiler.program.shapes import called, given_to


@dataclass(frozen=True)
class _Done:
    """What one call did."""

    counts: Counts
    above: int
    """The most bytes that it held at once, beside those held before."""
    made: Made | tuple[Made, ...] | None
    """None: its first argument."""


@dataclass(frozen=True)
class AlikeCounts:
    """What calls have done so far under a meter, as far as they made tensors in new memory or returned their first
    argument; all others run again."""

    meter: Meter
    known: dict[Hashable, _Done] = field(default_factory=dict)

    def result(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """What a node, no loop, makes of meta tensors; the meter, whose counts stand at zero, counts it."""
        args, kwargs = given_to(node, values)
        kind = kind_of_call((node.op, node.target), args, kwargs)
        meter, before = self.meter, self.meter.peak
        held = meter.peak = meter.held
        done = None if kind is None else self.known.get(kind)
        if done is None:
            result = called(node, args, kwargs)
            returns = bool(args) and result is args[0]
            made = None if returns else made_of(result, (*args, *kwargs.values()))
            if kind is not None and (returns or made is not None):
                self.known[kind] = _Done(replace(meter.counts), meter.peak - held, made)
        else:
            result = args[0] if done.made is None else made_again(done.made)
            meter.counts = replace(done.counts)  # not what making it again counted
            meter.peak = held + done.above
        meter.peak = max(before, meter.peak)
        return result
