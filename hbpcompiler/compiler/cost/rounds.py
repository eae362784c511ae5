"""How a long call goes: which loops a program runs, how many rounds they have and how long each takes.

The generated file runs once on meta tensors with a `range` that gives one round of each loop over chunks and notes it;
the call itself runs with one that tells, by the line it was asked in, which loop that is, and reports.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hbpcompiler.compiler.cost.figures import Machine
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.meter import Counts, Meter
from hbpcompiler.limits import Limits


@dataclass
class Rounds:
    """A loop over chunks, or, with one round, the whole call."""

    line: int
    """of the file, that the loop stands in."""
    each: float = 0.0
    """Predicted seconds of a round."""
    inside: list[Rounds] = field(default_factory=list)
    """The loops in it, in their order."""


def rounds_of(memory: MemoryModel, batch: int, machine: Machine, limits: Limits) -> Rounds:
    """The loops of a call with so many samples."""
    meter, call = Meter(limits), Rounds(0)
    around = [call]

    def once(*ends: int) -> Iterable[int]:
        whole = range(*ends)
        return turn(whole, sys._getframe(1).f_lineno) if len(ends) == 3 and len(whole) else whole

    def turn(whole: range, line: int) -> Iterator[int]:
        loop, before = Rounds(line), meter.counts
        around[-1].inside.append(loop)
        around.append(loop)
        meter.counts = Counts()
        yield whole[0]
        loop.each = meter.counts.seconds(machine, limits)
        before.add(meter.counts, len(whole))
        meter.counts = before
        around.pop()

    memory.run(batch, once, meter)
    call.each = meter.counts.seconds(machine, limits)
    return call


class Reporting:
    """Its `rounds` takes the place of the file's `range`, and tells how much of the call is done, from 0 to 1.

    Another thread that runs the same file is left alone.
    """

    def __init__(self, call: Rounds, report: Callable[[float], None]) -> None:
        self.call, self.report, self._thread = call, report, threading.current_thread()
        self._around = [(call, iter(call.inside))]
        self._done = 0.0
        """Predicted seconds of what has been done."""

    def rounds(self, *ends: int) -> Iterable[int]:
        whole = range(*ends)
        if len(ends) != 3 or threading.current_thread() is not self._thread:
            return whole
        line = sys._getframe(1).f_lineno
        loop = next((loop for loop in self._around[-1][1] if loop.line == line), None)
        return whole if loop is None else self._turns(whole, loop)

    def _turns(self, whole: range, loop: Rounds) -> Iterator[int]:
        began = self._done
        for number, first in enumerate(whole, 1):
            self._around.append((loop, iter(loop.inside)))
            yield first
            self._around.pop()
            self._done = began + number * loop.each
            self.report(min(1.0, self._done / self.call.each))
