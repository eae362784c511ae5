"""A `LocalTail` carried out: the neighbourhoods of some samples cut, then a loop over these as over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F

from hbpcompiler.compiler.derive.backward import Backward, Leaving
from hbpcompiler.compiler.derive.cross import born, root_of, unit_vectors
from hbpcompiler.compiler.derive.tail_loop import collect, take_steps, totals_of
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.plan.neighbourhood import Neighbourhood
from hbpcompiler.compiler.plan.steps import (
    PREFIX,
    Close,
    LocalTail,
    Widen,
)
from hbpcompiler.compiler.program.writer import Part, otherwise_named
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.rule import Op, Window, computed


def walk_local_tail(backward: Backward, step: LocalTail) -> None:
    """Walk the rest of a piece's way in a loop over samples and, inside it, one over positions."""
    roots, widens = root_of(backward, step.widen), [own for own in step.steps if isinstance(own, Widen)]
    rest = [own for own in step.steps if not isinstance(own, Widen)]
    unit = unit_vectors(backward, step.widen, step.piece.columns, roots)
    name = PREFIX[step.piece.stream]

    def body(part: Part) -> None:
        ops = {name: op.bound_again(part.read) for name, op in backward.ops.items()}
        whole = backward.inside(part.writer, ops, part.outer)
        pieces = _Pieces(whole, step, part["columns"])
        inside_unit = part.outer(unit)

        def inner(chunk: Part) -> None:
            sub = whole.inside(chunk.writer, pieces.ops(chunk), chunk.outer, signs={step.piece.name: chunk["signs"]},
                               slopes={name: chunk.read(slope, True) for name, slope in pieces.slopes.items()},
                               leaving=pieces.leaving(chunk))
            for widen in widens:
                with chunk.writer.block(*backward.heading(widen.operation)):
                    columns = sub.leaving(widen.operation, widen.slot,
                                          born(sub, widen, chunk["columns"], chunk.outer(inside_unit)))
                    sub.arrive(widen.operation.tensors[widen.slot], widen.into, columns)
            take_steps(sub, rest, lambda name: chunk.outer(part.totals[name]))

        sliced = {name: None if part[name] is None else pieces.of_diagonal(part[name]) for name in ("columns", "signs")}
        part.writer.loop(inner, op=None, sliced=sliced, chunk=step.chunk, totals={}, over="positions",
                         about=f"{name} at some positions as columns sqrt|{name}| e_k, back through the pieces; "
                               f"adds {'sum_{nk} sign T^2' if step.piece.signed else 'sum_{nk} T^2'} to totals")

    sliced = {"columns": roots, "signs": backward.signs.get(step.piece.name)}
    found = backward.writer.loop(body, op=None, sliced=sliced, chunk=step.samples, totals=totals_of(step),
                                 over="samples",
                                 about=f"{name} of some samples; pieces are what the columns of a position meet")
    collect(backward, step, found)


class _Pieces:
    """What positions read of the tensors on the way: [samples * positions, channels, *neighbourhood]."""

    def __init__(self, whole: Backward, step: LocalTail, roots: Any) -> None:
        self.whole, self.step = whole, step
        self.inputs: dict[tuple[str, str], Any] = {}
        self.slopes: dict[str, Any] = {}
        self.inside: dict[tuple[str, str], Any] = {}
        """1 in the image, 0 outside: [samples * positions, 1, *neighbourhood]."""
        self.operations: dict[str, Operation] = {own.operation.name: own.operation for own in step.steps}
        closed = {own.operation.name for own in step.steps if isinstance(own, Close)}
        for name in self.operations:
            entire, op, window = whole.matched.graph.makers[name], whole.ops[name], self._window(name)
            with whole.writer.block(*whole.heading(entire)):
                if window is None:
                    self.slopes[name] = self._cut(whole.derivative(entire), entire.output, step.places[name])
                if window is None and name not in closed:
                    continue
                before, fill = self._before(name), 0.0 if window is None else window.fill
                for slot, value in entire.tensors.items():
                    if value.batched:
                        self.inputs[name, slot] = self._cut(getattr(op, slot), value, before, fill)
                    if (name, slot) in step.cleared:
                        sizes = value.sample_shape[1:]
                        ones = roots.new_ones(1, 1, *sizes).expand(roots.shape[0], -1, *sizes)
                        self.inside[name, slot] = self._cut(ones, value, before)

    def _window(self, name: str) -> Window | None:
        return self.whole.rule_of(self.operations[name]).window(self.whole.ops[name])

    def _before(self, name: str) -> Neighbourhood:
        """What an operation reads of its inputs."""
        window, place = self._window(name), self.step.places[name]
        return place if window is None else place.read_through(window)

    def leaving(self, chunk: Part) -> Leaving:
        """What is done to columns on their way to an input: zeros outside the image, and where only others read."""

        def leave(operation: Operation, slot: str, columns: Any) -> Any:
            if (operation.name, slot) in self.inside:
                columns = columns * chunk.read(self.inside[operation.name, slot], True).unsqueeze(1)
            place = self.step.places[operation.tensors[slot].name]
            margins = place.margins(self._before(operation.name))
            return F.pad(columns, margins) if any(margins) else columns

        return leave

    def of_diagonal(self, diagonal: Any) -> Any:
        """[samples, K] -> [samples * positions, channels]."""
        return diagonal.unflatten(1, (self.step.columns, -1)).mT.flatten(0, 1)

    def ops(self, chunk: Part) -> Mapping[str, Op]:
        """The operations on a chunk of pieces; what a forward pass saves is made again, of the pieces."""
        return {name: self._op(operation, chunk) for name, operation in self.operations.items()}

    def _op(self, operation: Operation, chunk: Part) -> Op:
        whole, rule = self.whole.ops[operation.name], self.whole.rule_of(operation)
        saved: Mapping[str, Any] | None = None

        def tensors(name: str) -> Any:
            nonlocal saved
            if name in operation.tensors and operation.tensors[name].batched:
                return chunk.read(self.inputs[operation.name, name], True)
            if name in operation.tensors:
                return chunk.outer(getattr(whole, name))
            if saved is None:
                saved = {}  # for the arguments that forward finds missing
                output, others = computed(rule, op)
                made = self.whole.matched.names[operation.name]
                saved = {**{key: otherwise_named(value, f"{made}_{key}_pieces") for key, value in others.items()},
                         "output": output}
            return saved[name]

        op = bind(operation, tensors, self.whole.matched.active)
        return op

    def _cut(self, tensor: Any, value: Value, place: Neighbourhood, fill: float = 0.0) -> Any:
        return otherwise_named(cut(tensor, value.sample_shape[1:], self.step.positions, place, fill), "_pieces")


def cut(tensor: Any, sizes: Sequence[int], positions: Sequence[int], place: Neighbourhood, fill: float = 0.0) -> Any:
    """[samples, channels, *sizes] -> [samples * positions, channels, *length]; outside the image it is `fill`."""
    axes = len(sizes)
    # Of the last one, how far it reaches beyond the image; less than none is cut off.
    ends = [(count - 1) * step + first + length - size for count, step, first, length, size in
            zip(positions, place.step, place.first, place.length, sizes, strict=True)]
    amounts = [amount for first, end in zip(reversed(place.first), reversed(ends), strict=True)
               for amount in (-first, end)]
    if any(amounts):
        tensor = F.pad(tensor, amounts, value=fill)
    for axis, (length, step) in enumerate(zip(place.length, place.step, strict=True)):
        tensor = tensor.unfold(2 + axis, length, step)
    order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    return tensor.permute(order).flatten(0, axes)
