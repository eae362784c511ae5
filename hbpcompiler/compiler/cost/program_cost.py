"""What a program costs, step by step: the derived graph runs on meta tensors and a meter counts what each node does.

Routes state their costs in closed form, because they are chosen before there is a program. Here all the rest is
counted too (the forward pass, births, columns crossing operations, results), on the graph as it was optimised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from hbpcompiler.compiler.cost.alike_counts import AlikeCounts
from hbpcompiler.compiler.cost.figures import DEFAULT, Cost, Machine
from hbpcompiler.compiler.cost.meter import Counts, Meter
from hbpcompiler.compiler.cost.quick import seconds_at_most
from hbpcompiler.compiler.program import meta as node_meta
from hbpcompiler.compiler.program.shapes import interpret, resized, stand_ins
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.compiler.trace.graph import Graph, N, meta
from hbpcompiler.limits import DEFAULT_LIMITS, Limits

FORWARD, RESULTS = "forward", "results"
Place = str | int
"""FORWARD, RESULTS or the number of a step of the plan."""
SAMPLES = (64, 128, 192)
"""Batch sizes, evenly spaced, that the polynomials in N are drawn through: nothing grows faster than N^2."""
ROUNDING = 1e-9


class ProgramCost:
    """Costs of one program by place, counted when they are first asked for."""

    def __init__(self, program: fx.Graph, source: Graph, machine: Machine = DEFAULT,
                 limits: Limits = DEFAULT_LIMITS) -> None:
        self.program, self.source, self.machine, self.limits = program, source, machine, limits
        self._meter = Meter(limits)
        self._alike = AlikeCounts(self._meter)
        self._known: dict[tuple[int, bool], dict[Place, tuple[Counts, int]]] = {}
        self._short = 0
        """The largest batch that is known to take no longer than the user is asked to wait without a word."""

    def is_long(self, batch: int) -> bool:
        """Whether a call with so many samples is predicted to take more than `Limits.announced_seconds`."""
        most = self.limits.announced_seconds
        if batch <= self._short:
            return False
        if seconds_at_most(self.program, batch, self.machine) > most and sum(self.seconds(batch).values()) > most:
            return True
        self._short = batch
        return False

    def seconds(self, batch: int) -> dict[Place, float]:
        """Predicted time of each place at a batch size; their sum is the program's."""
        counted = self._counted(batch, False)
        return {place: counts.seconds(self.machine, self.limits) for place, (counts, _) in counted.items()}

    def costs(self) -> dict[Place, Cost]:
        """Of each place, as polynomials in N: multiply-adds, bytes moved, peak bytes made on the way, calls."""
        runs = [self._counted(batch, True) for batch in SAMPLES]
        found = {}
        for place in runs[0]:
            counts, memory = zip(*(run[place] for run in runs), strict=True)
            found[place] = Cost(
                _polynomial([each.multiply_adds for each in counts]),
                _polynomial([each.traffic + each.cached for each in counts]),
                _polynomial([memory[0], (memory[0] + memory[-1]) / 2, memory[-1]]),  # a maximum: its chord
                _polynomial([each.calls for each in counts]),
                _polynomial([each.batched for each in counts]),
                _polynomial([each.kernel for each in counts]),
            )
        return found

    def _counted(self, batch: int, smooth: bool) -> dict[Place, tuple[Counts, int]]:
        """Counts and peak bytes by place. Smooth: a loop counts as length / chunk rounds, no remainder apart."""
        if (batch, smooth) not in self._known:
            state = {value.key: meta(value, batch) for value in self.source.state}
            data = {value.name: meta(value, batch) for value in self.source.batch}
            given, beside = {"state": state, **data}, stand_ins(
                self.program, batch, state, self.limits.typical_vectors)
            arguments = [beside[name] if (name := node_meta.argument(node)) else given[str(node.target)]
                         for node in self.program.nodes if node.op == "placeholder"]
            found: dict[Place, tuple[Counts, int]] = {}
            held: dict[Place, int] = {}
            with torch.no_grad(), self._meter:
                for node, counts, before, peak in self._count(self.program, arguments, smooth):
                    place = _place(node)
                    total, highest = found.get(place, (Counts(), 0))
                    total.add(counts)
                    found[place] = total, max(highest, peak - held.setdefault(place, before))
            self._known[batch, smooth] = found
        return self._known[batch, smooth]

    def _count(self, graph: fx.Graph, arguments: Sequence[Any],
               smooth: bool) -> Iterator[tuple[fx.Node, Counts, int, int]]:
        """Each node with its counts, the bytes held before it and the most held during it."""
        meter = self._meter

        def enter(loop: Loop, accumulators: Sequence[Tensor], cut: Sequence[Tensor], whole: Sequence[Tensor]) -> None:
            outer, total = meter.counts, Counts()
            for size, rounds in _rounds(cut[0].shape[loop.axis], loop.chunk, smooth):
                given = loop.turn(accumulators, cut, whole, partial(_cut, size))
                highest = meter.peak
                for _, counts, _, peak in self._count(loop.body, given, smooth):
                    total.add(counts, rounds)
                    highest = max(highest, peak)
                meter.peak = highest
            outer.add(total)
            meter.counts = outer

        meter.counts, before, meter.peak = Counts(), meter.held, meter.held
        for node, _ in interpret(graph, arguments, enter, self._alike.result):
            yield node, meter.counts, before, meter.peak
            meter.counts, before, meter.peak = Counts(), meter.held, meter.held


def _cut(size: int, tensor: Tensor, axis: int) -> Tensor:
    """A chunk: a slice, whose strides decide what has to be copied, unless the chunk is longer than the tensor."""
    return tensor.narrow(axis, 0, size) if size <= tensor.shape[axis] else resized(tensor, axis, size)


def _rounds(length: int, chunk: int, smooth: bool) -> list[tuple[int, float]]:
    """Sizes of chunks and how many there are of each."""
    if smooth:
        return [(chunk, length / chunk)]
    whole, rest = divmod(length, chunk)
    return [(chunk, float(whole))] * (whole > 0) + [(rest, 1.0)] * (rest > 0)


def _place(node: fx.Node) -> Place:
    step = node_meta.step(node)
    if step is not None:
        return step
    block = node_meta.block(node)
    return RESULTS if block is not None and block.part == RESULTS else FORWARD


def _polynomial(values: Sequence[float]) -> Any:
    """The polynomial in N of degree 2 or less through the values at SAMPLES."""
    step, (low, middle, high) = SAMPLES[1] - SAMPLES[0], values
    bend = (low - 2 * middle + high) / (2 * step**2)
    bend = bend if abs(bend) * SAMPLES[-1] ** 2 > ROUNDING * max(map(abs, values)) else 0.0
    slope = (middle - low) / step - bend * (SAMPLES[0] + SAMPLES[1])
    constant = low - slope * SAMPLES[0] - bend * SAMPLES[0] ** 2
    return sum(_short(coefficient) * N**power for power, coefficient in enumerate((constant, slope, bend)))


def _short(coefficient: float) -> Any:
    return sympy.Rational(round(coefficient * 1000), 1000)
