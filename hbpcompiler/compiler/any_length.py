"""One program for many lengths: planned at the first, written for any, served between those at which it was checked.

The stages run at a few lengths more, all choices of size being those of the first (`cost.decisions`). If the programs
are the same but for numbers, and every number follows one formula in T at all of them, the first program is rewritten
with these formulas. Two of the lengths are neighbours, so that what depends on a remainder (a stride's) cannot hide;
two lie as far apart as the lengths that are served: what changes at some length in between is found at one end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import sympy
import torch
from torch import fx

from hbpcompiler.compiler.at_length import At, ModelAt
from hbpcompiler.compiler.built import Built, loaded
from hbpcompiler.compiler.cost.decisions import followed
from hbpcompiler.compiler.cost.memory import MemoryModel
from hbpcompiler.compiler.cost.program_cost import ProgramCost
from hbpcompiler.compiler.lengths.axes import Axes
from hbpcompiler.compiler.lengths.fits import Check, Fits
from hbpcompiler.compiler.lengths.matched_at import AnyLength, matched_at
from hbpcompiler.compiler.lengths.numbers import NeedsMoreError
from hbpcompiler.compiler.lengths.walk import LengthsDifferError, Walk
from hbpcompiler.compiler.lengths.write import write
from hbpcompiler.compiler.match.losses.targets import loss_checks
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.program.by_sample import copy_of
from hbpcompiler.compiler.program.check import Level, check_program
from hbpcompiler.compiler.program.kernels import on_meta
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.graph import N, T

KEPT = 256
"""Lengths of which shapes and predictions are kept."""
LEAST = 2
"""Lengths of one are a matter of their own: axes of one place are broadcast and dropped."""
NOTHING = 1e-6
"""Parts of a cost that are rounding."""
SAMPLES = (*range(1, 70), 100, 128, 200, 256, 512, 1000, 1024)
"""Batch sizes, of which traces at several lengths must serve the same ones."""
FEW, MORE = 3, 5
"""So many lengths tell straight lines, and cubic polynomials; four are enough for parabolas."""


@dataclass
class Program:
    """A program for the lengths from `lowest` to `highest`."""

    axes: Axes
    first: Built
    """The program that was planned, for its own length alone."""
    length: int
    """That length."""
    whole: Built
    """The program for any length."""
    at: AnyLength
    fits: Fits
    of_matched: Fits
    described: str
    """The axes in words."""
    planned: Callable[[Matched], Plan]
    """The first stage, for the graph of another length."""
    lowest: int
    highest: int
    by_length: dict[int, Built] = field(default_factory=dict)
    impossible: list[int] = field(default_factory=list)
    """Lengths at which the stages made another program."""
    compared: set[int] = field(default_factory=set)
    """Lengths at which what the model does there was compared with the program's graph."""
    used: int = 0

    def serves(self, length: int, samples: int) -> bool:
        """Whether it was checked at lengths around this one, for so many samples."""
        return self.lowest <= length <= self.highest and self.whole.sizes.include(samples)

    def built(self, length: int) -> Built:
        """What it is at a length: the same program, with shapes and predictions of this length."""
        if length not in self.by_length:
            if len(self.by_length) >= KEPT:
                self.by_length.pop(next(iter(self.by_length)))
            self.by_length[length] = self._built(length)
        return self.by_length[length]

    def _built(self, length: int) -> Built:
        whole, matched = self.whole, self.at(length)
        draft, growth = whole.draft, max(1.0, length / self.length) ** 2
        with followed(draft.decisions, to_the_end=False):
            planned = self.planned(matched)
        memory = MemoryModel(draft.code, matched.graph, draft.memory.allowance, draft.graph, on_meta(draft.graph),
                             draft.memory.brought, growth)
        cost = ProgramCost(draft.graph, matched.graph, draft.cost.machine, draft.cost.limits)
        return replace(whole, matched=matched, draft=replace(draft, plan=planned, memory=memory, cost=cost,
                                                                 length=length),
                       losses=loss_checks(matched), whole=whole, proven=set(whole.proven))

    def check(self, other: At) -> None:
        """That the stages make the same program at another length, which is served from then on. Raises
        LengthsDifferError."""
        self.check_model(other)
        Walk(Check(other.length, self.fits.found)).run([self.first.draft.graph, other.graph])
        self.lowest, self.highest = min(self.lowest, other.length), max(self.highest, other.length)

    def check_model(self, other: ModelAt) -> None:
        """That the model does at another length what this program's graph says of it. Raises LengthsDifferError."""
        _check_alike(self.first, other)
        matched_at([self.first.matched, other.matched], Check(other.length, self.of_matched.found))
        self.compared.add(other.length)

    def costs(self) -> tuple[Any, Any]:
        """Of a call, multiply-adds and bytes moved as polynomials in N and T."""
        lengths = self.lowest, (self.lowest + self.highest) // 2, self.highest
        adds, traffic = [], []
        for length in lengths:
            costs = self.built(length).draft.cost.costs().values()
            adds.append(sum(cost.multiply_adds for cost in costs))
            traffic.append(sum(cost.traffic for cost in costs))
        return _through(lengths, adds), _through(lengths, traffic)

    def in_words(self) -> str:
        return (f"T is {self.described}, planned for T = {self.length}, checked from T = {self.lowest} to "
                f"{self.highest}, and tried out anew beyond")


def for_any_length(first: Built, batch: Batch, axes: Axes, served: int, stages: Callable[[int], At],
                   proven: bool) -> Program:
    """The program for any length of these axes, of one for the batch's.

    It must serve the length `served`; at other lengths, what `stages` cannot make is left out. `proven`: it needs no
    proof at a length before it is used. Raises LengthsDifferError, saying why one program cannot be had.
    """
    length = axes.length(batch)
    assert length is not None
    every: list[At] = []
    complaint: LengthsDifferError | None = None
    for other in candidates(length, served):
        try:
            found = stages(other)
            _check_alike(first, found)
            # What a rule decides by comparing lengths may turn at this one: then its program is another.
            Walk(_any_numbers).run([first.draft.graph, found.graph])
        except LengthsDifferError as error:
            if other == served:
                raise
            complaint = complaint or error
            continue
        every.append(found)
        if len(every) + 1 < FEW or not _are_neighbours([length, *(at.length for at in every)]):
            continue
        try:
            return _written(first, batch, axes, length, every, {True, False} if proven else set())
        except NeedsMoreError:
            if len(every) + 1 >= MORE:
                break
    raise complaint or LengthsDifferError("too few lengths can be tried to tell how its numbers depend on them")


def _are_neighbours(lengths: Sequence[int]) -> bool:
    return any(length + 1 in lengths for length in lengths)


def _written(first: Built, batch: Batch, axes: Axes, length: int, every: Sequence[At], proven: set[bool]) -> Program:
    lengths = [length, *(at.length for at in every)]
    fits, of_matched = Fits(lengths), Fits(lengths)
    graph = copy_of(first.draft.graph)
    walk = Walk(fits)
    walk.run([graph, *(at.graph for at in every)])
    at = matched_at([first.matched, *(each.matched for each in every)], of_matched)
    place = axes.of[0]
    write(graph, walk, first.matched.graph.batch[place.tensor].name, place.axis, length)
    check_program(graph, Level.FINAL)
    written = partial(_with_note, first.draft.written, f"T is {axes.in_words(batch)}; planned for T = {length}.")
    code = written(graph)
    program, path = loaded(code, first.backend)
    draft = replace(first.draft, graph=graph, code=code, written=written)
    whole = replace(first, draft=draft, path=path, program=program, run=program, proven=proven, _adding={})
    return Program(axes, first, length, whole, at, fits, of_matched, axes.in_words(batch), every[0].planned,
                   min(lengths), max(lengths), compared=set(lengths))


def _any_numbers(numbers: Sequence[Any]) -> Any:
    return numbers[0]


def _through(lengths: Sequence[int], costs: Sequence[Any]) -> Any:
    """The polynomial of degree two or less in T through three costs, polynomials in N."""
    found = sympy.expand(sympy.interpolate(list(zip(lengths, costs, strict=True)), T))
    terms = sympy.Poly(found, N, T).terms()
    most = max((abs(coefficient) * lengths[-1] ** powers[1] for powers, coefficient in terms), default=0)
    return sum(coefficient * N**powers[0] * T**powers[1] for powers, coefficient in terms
               if abs(coefficient) * lengths[-1] ** powers[1] > NOTHING * most)


def _with_note(written: Callable[..., str], note: str, graph: fx.Graph, *more: str) -> str:
    return written(graph, note, *more)


def _check_alike(first: Built, other: ModelAt) -> None:
    """That what goes with a program is the same: constants, batch sizes, the shape of its result."""
    mine, found = first.constants, other.traced.constants
    places = first.places
    if places != other.places:
        raise LengthsDifferError("the model reads another tensor at another length; look it up with an index tensor")
    if mine.keys() != found.keys() or any(
            not torch.equal(mine[name], found[name]) or mine[name].dtype != found[name].dtype
            for name in mine if name not in places):
        raise LengthsDifferError("the model makes a constant tensor of the length; write it with operations on tensors")
    if other.traced.returned.identity() != first.structure.identity():
        raise LengthsDifferError("the model returns other things at another length")
    if any(first.sizes.include(samples) != other.traced.sizes.include(samples) for samples in SAMPLES):
        raise LengthsDifferError("for which batch sizes the trace holds depends on the length")


def candidates(first: int, served: int) -> list[int]:
    """Lengths to find a program from, the one to be served in front: neighbours of theirs, then some further away."""
    high, low = max(first, served), min(first, served)
    order = [served, high + 1, high - 1, 2 * high, low - 1, 2 * high + 1, low + 1, (low + high) // 2, low // 2,
             high + 2, low // 2 + 1]
    return list(dict.fromkeys(length for length in order if length >= LEAST and length != first))


def beyond(program: Program, length: int) -> list[int]:
    """Lengths at which to check a program that this one lies outside of, the widest first."""
    if length < LEAST:
        return []
    wide = max(length, 2 * program.highest) if length > program.highest else max(
        LEAST, min(length, program.lowest // 2))
    return list(dict.fromkeys([wide, length]))
