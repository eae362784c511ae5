"""Which of the loss's columns are made in loops, of those of each position alone.

A loss of [C, *d] has (C - 1) P columns of C P numbers, of which all but one position's are zero. Where a loop over
samples takes them, only what each position has by itself is made for the whole batch: P times fewer numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.arrivals import Arrival, makes, reads
from hbpcompiler.compiler.plan.steps import Pull, SampleChunks, Seed, Step, Tail, flat
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.quantities import GGN
from hbpcompiler.rule import Factor, LossRule, Op, Rule

Place = tuple[str, str]


def with_seeds_by_position(steps: Sequence[Step], rules: Mapping[str, Rule | LossRule],
                           static: Callable[[Operation], Op], itemsize: int, resources: Resources) -> list[Step]:
    """The steps, with seeds by position where one loop alone takes their columns: at once, or behind operations of
    the loss, such as those that flatten positions, which then are steps of the loop."""
    found = list(steps)
    for seed in steps:
        if isinstance(seed, Seed) and _has_positions(seed, rules, static) \
                and _is_large(seed, rules, itemsize, resources):
            found = _by_position(seed, (_value(seed, rules).name, seed.piece.name), found)
    return found


def _value(seed: Seed, rules: Mapping[str, Rule | LossRule]) -> Value:
    """Where its columns are."""
    rule = rules[seed.operation.name]
    assert isinstance(rule, LossRule)
    return seed.operation.tensors[rule.input]


def _is_large(seed: Seed, rules: Mapping[str, Rule | LossRule], itemsize: int, resources: Resources) -> bool:
    """Whether one sample's columns are more than the cache holds, or memory is limited: smaller ones are made faster
    for the whole batch."""
    value = _value(seed, rules)
    each = itemsize * seed.piece.columns * math.prod(value.sample_shape)
    limited = resources.temporaries is not None
    return limited or decided("columns by position", lambda: each > resources.limits.cache_bytes)


def _has_positions(step: Seed, rules: Mapping[str, Rule | LossRule], static: Callable[[Operation], Op]) -> bool:
    """Whether the loss's exact columns may be had position by position, and there are several positions."""
    piece, rule = step.piece, rules[step.operation.name]
    assert isinstance(rule, LossRule)
    if piece.form != COLUMNS or piece.stream != GGN or piece.signed:
        return False
    residual = rule.residual_of(static(step.operation))
    several = len(step.operation.tensors[rule.input].sample_shape) > 1
    return several and isinstance(residual, Factor) and residual.by_position is not None


def _by_position(seed: Seed, place: Place, steps: list[Step]) -> list[Step]:
    """The steps with this seed by position, if a loop takes its columns from this place."""
    *way, loop = _way(seed, place, steps)
    if not _may_make_them(loop, way):
        return steps
    into = replace(loop, steps=(*way, *loop.steps)) if isinstance(loop, SampleChunks) else loop
    new = {id(seed): replace(seed, by_position=True), id(loop): into}
    moved = set(map(id, way))
    return [new.get(id(step), step) for step in steps if id(step) not in moved]


def _may_make_them(loop: Step, way: Sequence[Step]) -> bool:
    """Whether this is a loop, of a kind that may make the columns, and take the steps on the way to it."""
    return type(loop) is SampleChunks or (type(loop) is Tail and len(loop.values) == 1 and not way)


def _way(seed: Seed, place: Place, steps: Sequence[Step]) -> list[Step]:
    """What the columns cross one after the other inside the loss, and the step behind; the seed where they branch."""
    found: list[Step] = []
    while True:
        readers = [step for step in steps if place in _named(_all(step, reads))]
        makers = [step for step in steps if place in _named(_all(step, makes))]
        if len(readers) != 1 or len(makers) != 1:
            return [seed]
        found += readers
        (last,) = readers
        if not isinstance(last, Pull) or not last.operation.source.in_loss:
            return found
        place = (last.operation.tensors[last.slot].name, last.piece.name)


def _all(step: Step, of: Callable[[Step], list[Arrival]]) -> list[Arrival]:
    """What a step, and those inside it, take or bring."""
    return [arrival for own in (step, *flat(step)) for arrival in of(own)]


def _named(arrivals: Sequence[Arrival]) -> set[Place]:
    return {(value.name, piece.name) for value, piece in arrivals}
