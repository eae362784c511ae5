"""A `LocalTail` carried out: the neighbourhoods of some samples cut, then a loop over these as over samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hbpcompiler.bind import bind
from hbpcompiler.graph import Operation, Value
from hbpcompiler.rule import Op, called
from hbpcompiler.steps import LocalTail, Neighbourhood, Widen, title
from hbpcompiler.tail_walk import collect, take_steps, totals_of
from hbpcompiler.writer import Part

if TYPE_CHECKING:
    from hbpcompiler.backward import Backward


def walk_local_tail(backward: Backward, step: LocalTail) -> None:
    """Walk the rest of a piece's way in a loop over samples and, inside it, one over positions."""
    roots, widen = backward.root(step.widen), step.steps[0]
    assert isinstance(widen, Widen)
    unit = backward.writer.call(torch.eye, step.piece.columns, dtype=roots.dtype, device=roots.device)

    def body(part: Part) -> None:
        whole = backward.inside(part.writer, {name: op.bound_again(part.read) for name, op in backward.ops.items()})
        pieces = _Pieces(whole, step)
        inside_unit = part.outer(unit)

        def inner(chunk: Part) -> None:
            sub = whole.inside(chunk.writer, pieces.ops(chunk))
            sub.signs = {step.piece.name: chunk["signs"]}
            sub.slopes = {name: chunk.read(slope, True) for name, slope in pieces.slopes.items()}
            with chunk.writer.block(title(widen.operation), "backward"):
                columns = sub.born(widen, chunk["columns"], chunk.outer(inside_unit))
                sub.arrive(widen.operation.tensors[widen.slot], widen.into, columns)
            take_steps(sub, step.steps[1:], lambda name: chunk.outer(part.totals[name]))

        sliced = {name: None if part[name] is None else pieces.of_diagonal(part[name]) for name in ("columns", "signs")}
        part.writer.loop(inner, op=None, sliced=sliced, chunk=step.chunk, totals={})

    sliced = {"columns": roots, "signs": backward.signs.get(step.piece.name)}
    found = backward.writer.loop(body, op=None, sliced=sliced, chunk=step.samples, totals=totals_of(step))
    collect(backward, step, found)


class _Pieces:
    """What positions read of the tensors on the way: [samples * positions, channels, *neighbourhood]."""

    def __init__(self, whole: Backward, step: LocalTail) -> None:
        self.whole, self.step = whole, step
        self.inputs: dict[str, Any] = {}
        self.slopes: dict[str, Any] = {}
        self.operations: dict[str, Operation] = {own.operation.name: own.operation for own in step.steps}
        for name, operation in self.operations.items():
            rule, op = whole.rule_of(operation), whole.ops[name]
            with whole.writer.block(title(operation), "backward"):
                window, entire = rule.window(op), whole.source.makers[name]
                if window is None:
                    self.slopes[name] = self._cut(whole.derivative(entire), entire.output, step.places[name])
                    continue
                slot, value = next((slot, value) for slot, value in entire.tensors.items() if value.batched)
                place = step.places[name].read_through(window)
                self.inputs[name] = self._cut(getattr(op, slot), value, place, window.fill)

    def of_diagonal(self, diagonal: Any) -> Any:
        """[samples, K] -> [samples * positions, channels]."""
        return diagonal.unflatten(1, (self.step.columns, -1)).mT.flatten(0, 1)

    def ops(self, chunk: Part) -> Mapping[str, Op]:
        """The operations on a chunk of pieces; what a forward pass saves is made again, of the pieces."""
        return {name: self._op(operation, chunk) for name, operation in self.operations.items()}

    def _op(self, operation: Operation, chunk: Part) -> Op:
        whole, rule = self.whole.ops[operation.name], self.whole.rule_of(operation)
        saved: dict[str, Any] = {}

        def tensors(name: str) -> Any:
            if name in operation.tensors and operation.tensors[name].batched:
                return chunk.read(self.inputs[operation.name], True)
            if name in operation.tensors:
                return chunk.outer(getattr(whole, name))
            if not saved:
                assert rule.forward is not None
                output, others = rule.forward(op)
                saved.update(others, output=output)
            return saved[name]

        op = bind(operation, tensors, set(self.whole.active))
        return op

    def _cut(self, tensor: Any, value: Value, place: Neighbourhood, fill: float = 0.0) -> Any:
        """[samples, channels, *sizes] -> [samples * positions, channels, *length]."""
        _, *sizes = value.sample_shape
        axes = len(sizes)
        # Of the last one, how far it reaches beyond the image; less than none is cut off.
        ends = [(count - 1) * step + first + length - size for count, step, first, length, size in
                zip(self.step.positions, place.step, place.first, place.length, sizes, strict=True)]
        amounts = [amount for first, end in zip(reversed(place.first), reversed(ends), strict=True)
                   for amount in (-first, end)]
        if any(amounts):
            tensor = F.pad(tensor, amounts, value=fill)
        for axis, (length, step) in enumerate(zip(place.length, place.step, strict=True)):
            tensor = tensor.unfold(2 + axis, length, step)
        order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
        return called("pieces", tensor.permute(order).flatten(0, axes))
