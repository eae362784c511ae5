"""Local support: residual columns of spatial layers live on a neighbourhood, and that is all that is walked of them.

A diagonal that widens into columns at a convolution gives columns of a few positions each, and every layer further back
adds a margin. A `LocalTail` takes the outputs position by position. For each it cuts, of all tensors on the way, the
neighbourhood that the position reads, and treats these pieces as samples of a smaller image, with as many columns as
the output has channels: its steps are those of any tail, at operations without padding. Where ways meet (a residual
connection), the value's neighbourhood holds what each of them reads.

Outside the image columns must be zero. Local derivatives are filled up with zeros there, and what a max-pool pads with
is never its largest; what a padded linear layer puts there is multiplied by zero, unless such a derivative comes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.closings import site_of
from hbpcompiler.compiler.plan.neighbourhood import Neighbourhood
from hbpcompiler.compiler.plan.steps import (
    Close,
    LocalTail,
    Piece,
    Pull,
    Step,
    Widen,
    kinds,
)
from hbpcompiler.compiler.routes import choose
from hbpcompiler.compiler.routes.site import SQUARES
from hbpcompiler.compiler.trace.graph import N, Operation, Value
from hbpcompiler.rule import Op, Rule, Window
from hbpcompiler.rule.registry import AnyRule

Own = Pull | Widen | Close


@dataclass(frozen=True)
class Local:
    """Looks for local tails among operations with these rules; `static` gives an operation's `Op` without numbers."""

    rules: Mapping[str, AnyRule]
    static: Callable[[Operation], Op]
    itemsize: int
    resources: Resources

    def tail(self, piece: Piece, own: Sequence[Own]) -> LocalTail | None:
        """The piece's way position by position, where it can go so and has less to do than with whole images."""
        first = own[0]
        if not isinstance(first, Widen) or not kinds(own) <= SQUARES:
            return None
        found = self._by_positions(piece, own)
        if found is None:
            return None
        smaller = [step for step in found.steps if isinstance(step, Own)]
        work = self.resources.limits.neighbourhood_work
        return found if decided("local", lambda: _numbers(smaller) < work * _numbers(own)) else None

    def _by_positions(self, piece: Piece, own: Sequence[Own]) -> LocalTail | None:
        """The tail by positions; None where something else than windows and elementwise operations is on the way."""
        widen = own[0]
        assert isinstance(widen, Widen)
        places = self._places(own)
        if places is None:
            return None
        start, smaller = widen.operation.output, self._smaller(own, places)
        channels, *sizes = start.sample_shape
        positions, local = math.prod(sizes), replace(piece, columns=channels)
        most = max(math.prod(value.sample_shape) for operation in smaller.values()
                   for value in (operation.output, *operation.tensors.values()) if value.batched)
        allowed = self.resources.temporaries
        each = most * channels * self.itemsize
        if decided("not local", lambda: allowed is not None and each > allowed):
            return None  # a tail of whole images can go by fewer columns at a time
        recycled = self.resources.limits.recycled_bytes
        chunk = decided("chunk", lambda: max(1, (recycled if allowed is None else min(recycled, allowed)) // each))
        samples = decided("chunk", lambda: max(1, chunk // positions))
        steps = tuple(self._step(step, smaller[step.operation.name], local, chunk, positions) for step in _joined(own))
        chunk = decided("chunk", lambda: min(chunk, samples * positions))
        return LocalTail(local, (start,), steps, samples, channels, widen, tuple(sizes), chunk, places,
                         self._cleared(own), limit="neighbourhood_work")

    def _places(self, own: Sequence[Own]) -> dict[str, Neighbourhood] | None:
        """What is read of each value; None where that is no neighbourhood."""
        start = own[0].operation.output
        axes = len(start.sample_shape) - 1
        if axes < 1:
            return None
        places = {start.name: Neighbourhood((1,) * axes, (0,) * axes, (1,) * axes)}
        for step in own:
            operation = step.operation
            before = self._read(operation, places[operation.name])
            if before is None:
                return None
            if isinstance(step, Close):
                continue
            value = operation.tensors[step.slot]
            known = places.get(value.name, before)
            if known.step != before.step:
                return None
            places[value.name] = known.joined(before)
        return places

    def _read(self, operation: Operation, place: Neighbourhood) -> Neighbourhood | None:
        """What these positions, as outputs, read of the inputs."""
        window = self._window(operation)
        if window is not None:
            return place.read_through(window)
        same = all(operation.tensors[slot].sample_shape == operation.output.sample_shape
                   for slot in _batched(operation))
        return place if same and self._is_elementwise(operation) and not _varies_over_positions(operation) else None

    def _smaller(self, own: Sequence[Own], places: Mapping[str, Neighbourhood]) -> dict[str, Operation]:
        """The operations on pieces of their tensors."""
        found: dict[str, Operation] = {}
        for operation in (step.operation for step in own):
            place, window = places[operation.name], self._window(operation)
            before = self._read(operation, place)
            assert before is not None
            tensors = {slot: _piece_of(value, before) if value.batched else value
                       for slot, value in operation.tensors.items()}
            unpadded = {} if window is None else window.unpadded
            found[operation.name] = replace(operation, output=_piece_of(operation.output, place), tensors=tensors,
                                            attributes={**operation.attributes, **unpadded})
        return found

    def _cleared(self, own: Sequence[Own]) -> frozenset[tuple[str, str]]:
        """The inputs (operation, slot) at which columns that go on are not zero outside the image."""
        clear = {step.operation.name for step in own if self._window(step.operation) is None}
        clear -= {step.operation.name for step in own if isinstance(step, Close)}
        found = set()
        for step in own:
            window = self._window(step.operation)
            if isinstance(step, Close) or window is None or not math.isfinite(window.fill):
                continue
            value = step.operation.tensors[step.slot]
            if value.name not in clear and _is_padded(window, step.operation, value):
                found.add((step.operation.name, step.slot))
        return frozenset(found)

    def _step(self, step: Own, operation: Operation, local: Piece, chunk: int, positions: int) -> Own:
        if isinstance(step, Widen):
            return replace(step, operation=operation, into=local)
        if isinstance(step, Pull):
            return replace(step, operation=operation, piece=local)
        rule, op = self.rules[operation.name], self.static(operation)
        assert isinstance(rule, Rule)
        contraction = rule.params(op)[step.slot]
        site = site_of(contraction, op, local, operation.output.dtype, self.resources, rule.window(op))
        site = replace(site, itemsize=step.site.itemsize, samples=chunk, pieces=positions)
        kinds = step.kinds
        return Close(operation, step.slot, step.parameter, local, site, contraction, choose(site, kinds))

    def _window(self, operation: Operation) -> Window | None:
        rule = self.rules[operation.name]
        return rule.window(self.static(operation)) if isinstance(rule, Rule) else None

    def _is_elementwise(self, operation: Operation) -> bool:
        rule = self.rules[operation.name]
        return isinstance(rule, Rule) and rule.elementwise_in(self.static(operation))


def _batched(operation: Operation) -> list[str]:
    return [slot for slot, value in operation.tensors.items() if value.batched]


def _varies_over_positions(operation: Operation) -> bool:
    """Whether a trained tensor, as an embedding of positions, has numbers of its own at each position: all of them are
    closed at once. What is not trained is in the local derivatives, which are cut."""
    sizes = operation.output.sample_shape[1:]
    return any(length == size != 1 for value in operation.tensors.values() if value.trainable
               for length, size in zip(reversed(value.shape), reversed(sizes), strict=False))


def _piece_of(value: Value, place: Neighbourhood) -> Value:
    return replace(value, shape=(N, value.sample_shape[0], *place.length))


def _is_padded(window: Window, operation: Operation, value: Value) -> bool:
    """Whether outputs inside the image read beyond the input."""
    _, *outer = operation.output.sample_shape
    whole = Neighbourhood((0,) * len(outer), (0,) * len(outer), tuple(outer)).read_through(window)
    return any(first < 0 or first + length > size
               for first, length, size in zip(whole.first, whole.length, value.sample_shape[1:], strict=True))


def _joined(own: Sequence[Own]) -> Iterator[Own]:
    """The steps, with all closings of one contraction in one."""
    seen: dict[tuple[str, str], Close] = {}
    for step in own:
        if isinstance(step, Close):
            place = step.operation.name, step.slot
            before = seen.get(place)
            seen[place] = replace(step, choices=(*before.choices, *step.choices)) if before else step
    for step in own:
        if not isinstance(step, Close):
            yield step
        elif (place := (step.operation.name, step.slot)) in seen:
            yield seen.pop(place)


def _passed(own: Sequence[Own]) -> Iterator[Value]:
    return (step.operation.tensors[step.slot] for step in own if not isinstance(step, Close))


def _numbers(own: Sequence[Own]) -> int:
    """How many numbers one column has on its way."""
    return sum(math.prod(value.sample_shape) for value in _passed(own))


def without_local(pools: Mapping[tuple[str, str], Operation],
                  steps: Sequence[Step]) -> dict[tuple[str, str], Operation]:
    """The places (value, piece) where columns are kept pooled, without those of pieces that go by neighbourhoods."""
    local = {step.piece.name for step in steps if isinstance(step, LocalTail)}
    return {place: pool for place, pool in pools.items() if place[1] not in local}
