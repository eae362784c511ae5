"""Second phases: when the norms of whole per-sample gradients are known, weighted columns end at the parameters again.

There are two ways. Book-keeping (Bu et al. 2022) keeps the gradient's columns at every operation with parameters until
the weights are known, and closes them again, weighted: one backward pass, and memory for all these columns. Or weighted
seeds at the model's output go all the way back a second time: nothing is kept, but the way is walked twice. Where
per-sample gradients are formed anyway, or cost little more than their norms, they are kept instead and summed.

Both ways are one thing: columns are weighed at some values, where they are kept, and travel from there on to wherever
they end. What comes out does not depend on the choice, only memory and time do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hbpcompiler import clipping
from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.phases import AGAIN, KEPT, SecondPhase, SumEach, Total, Weigh, Weights
from hbpcompiler.compiler.plan.pieces import Piece
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Pull, Seed, Step, Tied
from hbpcompiler.compiler.routes import Site, choose, seconds
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.options import Options
from hbpcompiler.quantities import CLIPPED, EACH, GRADIENT, NORM, QUANTITIES, SUM, Closing, closings_of

SQUARED_NORM = Closing(GRADIENT, NORM)
CLIPPED_SUM = Closing(CLIPPED, SUM)


def totals_of(matched: Matched, options: Options) -> tuple[Total, ...]:
    """What is added up over parameters, for the quantities that ask for it."""
    found: dict[tuple[str, Closing], Total] = {}
    for name in options.quantities:
        keys = [value.key for value in matched.trainable if options.chosen.asks(name, value.key)]
        for closing in QUANTITIES[name].summed:
            for group, members in clipping.groups(options.clipping, keys).items():
                found[group, closing] = Total(group, closing, members)
    return tuple(found.values())


@dataclass(frozen=True)
class Planned:
    """The steps of all phases, and how the second came about; None, if there is none."""

    steps: list[Step]
    phase: SecondPhase | None = None


def with_second_phase(steps: Sequence[Step], totals: Sequence[Total], closings: Collection[Closing], matched: Matched,
                      resources: Resources) -> Planned:
    """The steps, and behind the last that adds to a total those that end its weighted columns, if any are asked for."""
    if not totals or not any(CLIPPED_SUM in closings_of(closings, key) for key in totals[0].parameters):
        return Planned(list(steps))
    uses = _uses(steps, {key for total in totals for key in total.parameters})
    formed = decided("formed", lambda: _formed(steps, uses, resources))
    steps = [_with_each(step, formed) for step in steps]
    left = {key: own for key, own in uses.items() if key not in formed}
    operations = {use.operation.name: use.operation for own in left.values() for use in own}
    kept_bytes = _bytes_of(operations.values(), next(iter(uses.values()))[0].site.itemsize)
    # Columns of parameters that are clipped one by one are weighed at once: nothing is kept.
    at_once = all(len(total.parameters) == 1 for total in totals)
    way = KEPT if at_once or decided("kept", lambda: _fits(kept_bytes, resources)) else AGAIN
    seeded = {value.name for step in steps if isinstance(step, Seed) and step.piece.stream == GRADIENT
              for value in step.operation.tensors.values()}
    result = steps
    for number, total in enumerate(totals, 1):
        own = {key: left[key] for key in total.parameters if key in left}
        piece = _weighted(next(iter(uses.values()))[0], number)
        second = _Second(matched, result, total, piece)
        index, place = _completed(result, total)
        index = index if at_once else _behind_block(result, index)
        added = [Weights(total, place), *second.of_formed(formed, uses),
                 *second.ends(own, operations if way == KEPT else seeded)]
        result = [*result[: index + 1], *added, *result[index + 1 :]]
    repeated = _Second(matched, result, totals[0], piece).pulled(left, seeded)
    numbers = tuple(number for number, step in enumerate(result) if any(step is own for own in repeated))
    return Planned(result, SecondPhase(way, kept_bytes, tuple(sorted(formed)), numbers, at_once))


def _behind_block(steps: Sequence[Step], index: int) -> int:
    """The last of the closings in a row of one operation, whose block a second phase shall not cut in half."""
    own = steps[index]
    while isinstance(own, Close) and index + 1 < len(steps):
        behind = steps[index + 1]
        if not isinstance(behind, Close) or behind.operation is not own.operation:
            break
        index += 1
    return index


def _uses(steps: Iterable[Step], wanted: Collection[str]) -> dict[str, list[Close]]:
    """Where the gradient ends: each use of each of these parameters once, as one that is closed alone."""
    found: dict[str, dict[tuple[str, str], Close]] = {}
    for step in steps:
        for use in step.uses if isinstance(step, Tied) else [step] if isinstance(step, Close) else []:
            if use.piece is not None and use.piece.stream == GRADIENT and use.parameter.key in wanted:
                found.setdefault(use.parameter.key, {})[use.operation.name, use.slot] = use
    return {key: list(own.values()) for key, own in found.items()}


def _weighted(use: Close, number: int) -> Piece:
    assert use.piece is not None
    return replace(use.piece, name="C" if number == 1 else f"C{number}", stream=CLIPPED)


def _completed(steps: Sequence[Step], total: Total) -> tuple[int, Operation]:
    """The number of the last step that adds to a total, and its operation."""
    found = [(number, step.operation) for number, step in enumerate(steps)
             if isinstance(step, Close | Tied) and step.piece is not None and step.piece.stream == total.closing.stream
             and total.closing.kind in step.kinds and step.parameter.key in total.parameters]
    return found[-1]


# -- kept or again ---------------------------------------------------------------------------------------------------


def _bytes_of(operations: Iterable[Operation], itemsize: int) -> int:
    """Of the gradient's columns of one sample at the results of these operations."""
    return sum(math.prod(operation.output.sample_shape) for operation in operations) * itemsize


def _fits(each: int, resources: Resources) -> bool:
    """Whether so many bytes of each sample may be kept from the first phase to the second.

    Under a budget chunks get a share of what is left, of which several are alive; these columns are there but once.
    """
    limits, allowed = resources.limits, resources.temporaries
    if allowed is None:
        return each * limits.typical_batch <= limits.kept_bytes
    return each * resources.batch <= allowed * limits.budget_shares[0]


# -- per-sample gradients --------------------------------------------------------------------------------------------


def _formed(steps: Sequence[Step], uses: Mapping[str, Sequence[Close]], resources: Resources) -> set[str]:
    """Names of the parameters whose per-sample gradients are there, or had better be, as far as memory goes."""
    asked = {step.parameter.key for step in steps if isinstance(step, Close) and EACH in step.kinds}
    found = asked & set(uses)
    limits, batch = resources.limits, resources.limits.typical_batch
    left = limits.formed_bytes if resources.temporaries is None else min(limits.formed_bytes, resources.temporaries)
    worth = []
    for step in steps:
        if isinstance(step, Close) and SQUARED_NORM in _closings(step) and step.parameter.key not in asked and (
                len(uses.get(step.parameter.key, ())) == 1):
            ratio = _time_formed(step, batch) / _time_apart(step, batch)
            if ratio <= limits.formed_time:
                worth.append((ratio, _bytes_formed(step.site, resources), step.parameter.key))
    for _, size, key in sorted(worth):
        if size <= left:
            found.add(key)
            left -= size
    return found


def _closings(step: Close) -> set[Closing]:
    return {Closing(step.piece.stream, kind) for kind in step.kinds} if step.piece is not None else set()


def _bytes_formed(site: Site, resources: Resources) -> int:
    batch = resources.limits.typical_batch if resources.temporaries is None else resources.batch
    return batch * site.size(site.theta) * site.itemsize


def _time_formed(step: Close, batch: int) -> float:
    """Seconds of all closings with per-sample gradients among them, and of the weighted sum of these."""
    site, machine = step.site, step.site.resources.machine
    size = batch * site.size(site.theta) * site.itemsize
    pages = size / machine.fresh_bytes_per_second if size > site.resources.limits.recycled_bytes else 0.0
    return seconds(site, choose(site, step.kinds | {EACH})) + size / machine.bytes_per_second + pages


def _time_apart(step: Close, batch: int) -> float:
    """Seconds of the first phase's closings, of weighing the columns, and of closing them again."""
    site, machine = step.site, step.site.resources.machine
    weighing = 2 * batch * site.size(site.letters[0]) * site.itemsize / machine.bytes_per_second
    return seconds(site, choose(site, step.kinds)) + seconds(site, choose(site, frozenset({SUM}))) + weighing


def _with_each(step: Step, formed: Collection[str]) -> Step:
    """The first phase's closing, with per-sample gradients where they are formed."""
    if (isinstance(step, Close) and step.parameter.key in formed and SQUARED_NORM in _closings(step)
            and EACH not in step.kinds):
        return replace(step, choices=choose(step.site, step.kinds | {EACH}))
    return step


# -- the steps -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Second:
    """Writes the second phase of one total."""

    matched: Matched
    steps: Sequence[Step]
    total: Total
    into: Piece

    def of_formed(self, formed: Collection[str], uses: Mapping[str, Sequence[Close]]) -> Iterator[Step]:
        """Sums of per-sample gradients."""
        for key in self.total.parameters:
            if key in formed:
                use = uses[key][-1]
                yield SumEach(use.operation, use.parameter, self.into, use.site, self.total)

    def ends(self, uses: Mapping[str, Sequence[Close]], at: Collection[str]) -> Iterator[Step]:
        """Weigh the gradient's columns `at` these values, and bring them to all uses, in the order of the first
        phase."""
        pulls: dict[str, list[Pull]] = {}
        for pull in self.pulled(uses, at):
            pulls.setdefault(pull.operation.name, []).append(replace(pull, piece=self.into))
        closes: dict[str, list[Close]] = {}
        for own in uses.values():
            for use in own:
                again = replace(use, piece=self.into, choices=choose(use.site, frozenset({SUM})))
                closes.setdefault(use.operation.name, []).append(again)
        for operation in reversed(self.matched.graph.operations):
            name = operation.name
            if (name in pulls or name in closes) and name in at:
                gradient = next(step.piece for step in self.steps if isinstance(step, Seed)
                                and step.piece.stream == GRADIENT)
                yield Weigh(operation.output, gradient, self.into, self.total)
            yield from closes.get(name, [])
            yield from pulls.get(name, [])

    def pulled(self, uses: Mapping[str, Sequence[Close]], at: Collection[str]) -> list[Pull]:
        """The first phase's steps that bring the gradient from these values to the uses."""
        needed = {use.operation.name for own in uses.values() for use in own}
        found = []
        for step in reversed(self.steps):
            if isinstance(step, Pull) and step.piece.stream == GRADIENT:
                target = step.operation.tensors[step.slot].name
                if target in needed and target not in at:
                    needed.add(step.operation.name)
                    found.append(step)
        return found[::-1]


# -- in words --------------------------------------------------------------------------------------------------------


def notes(plan: Plan) -> list[str]:
    """What the head of the file, and `explain`, say about a second phase."""
    if plan.second is None:
        return []
    said = [f"Clipping {plan.clipping}: a sample weighs {clipping.STYLES[plan.clipping]}."]
    if plan.second.at_once:
        how = "columns are weighed at each parameter as soon as its norms are known"
    elif plan.second.way == KEPT:
        how = "the gradient's columns are kept at the parameters until the norms are known (book-keeping)"
    else:
        how = "weighted seeds go back a second time; the gradient's columns are not kept until the norms are known"
    formed = len(plan.second.formed)
    each = f"per-sample gradients of {formed} parameter{'s' if formed > 1 else ''} are formed, and summed"
    parts = [how] * bool(plan.second.kept_bytes) + [each] * bool(formed)
    return [*said, f"Second phase: {'; '.join(parts)}."]
