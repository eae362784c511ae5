"""Predicted peak memory of a call: the generated file itself runs on meta tensors, and what it holds is counted.

So the prediction knows what the file does: what the forward pass saves, what each `del` frees, what is written in
place. It counts what a call allocates, its results included; parameters and data are there anyway. What kernels
allocate for themselves, and what the allocator leaves unused, is not seen but allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.arguments import SAMPLE_WEIGHTS, Brought
from hbpcompiler.compiler.cost.meter import Meter
from hbpcompiler.compiler.program import meta as node_meta
from hbpcompiler.compiler.program.lengths import length_at
from hbpcompiler.compiler.program.shapes import stand_ins
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.compiler.trace.graph import Graph, meta
from hbpcompiler.limits import DEFAULT_LIMITS

ROUNDS = 2
"""Of a loop over chunks. Its first round starts with less held than all others, which are alike."""


def _rounds(*limits: int) -> Iterable[int]:
    """What the file's `range` gives: a loop over chunks, told by its step, is cut; one over axes or samples is whole,
    as shapes follow from each of its rounds."""
    whole = range(*limits)
    return whole[:ROUNDS] if len(limits) == 3 else whole


def together(program: fx.Graph, batch: int) -> int:
    """Bytes of all tensors that a program makes, as if none was freed; of a loop those of one turn."""
    total = 0
    for node in program.nodes:
        if isinstance(node.target, Loop):
            total += together(node.target.body, min(node.target.chunk, _cut_length(node, batch)))
        lengths, dtype = node_meta.shape(node), node_meta.dtype(node)
        if lengths is not None and dtype is not None and node.op != "placeholder":
            total += dtype.itemsize * math.prod(length_at(length, batch) for length in lengths)
    return total


def _cut_length(loop: fx.Node, batch: int) -> int:
    """That of the axis which a loop goes along, as far as the shapes outside tell it."""
    arguments: Any = loop.args
    target: Any = loop.target
    lengths = node_meta.shape(arguments[1][0])
    return target.chunk if lengths is None else length_at(lengths[target.axis], batch)


class MemoryModel:
    """Predicts the peak of one program, for any batch size: what its tensors hold, times an allowance."""

    def __init__(self, code: str, graph: Graph, allowance: float = DEFAULT_LIMITS.allowance,
                 program: fx.Graph | None = None, helpers: Mapping[str, Callable[..., Any]] | None = None,
                 brought: Brought = Brought(), growth: float = 1.0) -> None:  # noqa: B008  # a constant
        """`helpers` take the place of the file's own, by name: those that know what to do without memory. `growth`:
        how many times as large as the program's shapes say its tensors may be, as they may at another length."""
        self.code, self.graph, self.allowance, self.program, self.brought = code, graph, allowance, program, brought
        self.helpers, self.growth = dict(helpers or {}), growth
        self._others: dict[Brought, MemoryModel] = {brought: self}
        self._compiled: CodeType | None = None
        self._known: dict[int, int] = {}
        self._together: dict[int, int] = {}

    def of(self, brought: Brought) -> MemoryModel:
        """The same for calls that bring these arguments."""
        if brought not in self._others:
            other = MemoryModel(self.code, self.graph, self.allowance, self.program, self.helpers, brought,
                                self.growth)
            self._others[brought] = other
            other._others = self._others
        return self._others[brought]

    def peak(self, batch: int) -> int:
        """Bytes that a call with so many samples allocates at most at once."""
        if batch not in self._known:
            meter = Meter()
            with suppress(ZeroDivisionError):  # n - 1 of one sample: up to there; the call itself says what is wrong
                self.run(batch, _rounds, meter)
            self._known[batch] = int(self.allowance * meter.peak)
        return self._known[batch]

    def run(self, batch: int, rounds: Callable[..., Iterable[int]], meter: Meter) -> None:
        """The file on meta tensors, counted by a meter, with `rounds` in the place of its `range`."""
        namespace: dict[str, Any] = {"__name__": "hbpcompiler_memory", "range": rounds}
        if self._compiled is None:
            self._compiled = compile(self.code, "<generated>", "exec")
        exec(self._compiled, namespace)  # as `load` imports it
        namespace |= self.helpers
        state: Mapping[str, Tensor] = {value.key: meta(value, batch) for value in self.graph.state}
        data: Sequence[Tensor] = [meta(value, batch) for value in self.graph.batch]
        beside = {} if self.program is None else self._beside(self.program, batch, state)
        with torch.no_grad(), meter:
            namespace["Program"]().forward(state, *data, **beside)

    def _beside(self, program: fx.Graph, batch: int, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What stands for the call's arguments."""
        vectors = DEFAULT_LIMITS.typical_vectors if self.brought.vectors is None else self.brought.vectors
        beside = stand_ins(program, batch, state, vectors)
        if self.brought.weights and SAMPLE_WEIGHTS in beside:
            beside[SAMPLE_WEIGHTS] = torch.empty(batch, dtype=self.graph.dtype, device="meta")
        return beside

    def may_exceed(self, size: int, batch: int) -> bool:
        """Whether the peak may be more than so many bytes: at once, where not even all tensors together are so many."""
        return not self.surely_within(size, batch) and self.peak(batch) > size

    def surely_within(self, size: int, batch: int) -> bool:
        """Whether the peak is known to be no more than so many bytes without another run, as not even all tensors
        together are more."""
        if batch in self._known:
            return self._known[batch] <= size
        if batch not in self._together:
            if self.program is None or self._brings_vectors:
                return False
            self._together[batch] = int(self.growth * self.allowance * together(self.program, batch))
        return self._together[batch] <= size

    @property
    def _brings_vectors(self) -> bool:
        """Of which there may be any number, so that shapes in N do not tell all."""
        return self.program is not None and any(
            node_meta.sizes(node) for node in self.program.nodes if node.op == "placeholder")

    def largest_batch(self, budget: int, batch: int) -> int:
        """The largest batch size below `batch` whose call keeps to the budget; 0 if not even one sample does."""
        low, high = 0, batch
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= budget else (low, middle)
        return low
