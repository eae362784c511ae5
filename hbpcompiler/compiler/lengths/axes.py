"""Which axes of a batch have the length T, and batches of other lengths made of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.errors import InputError, OptionError, listing


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor."""

    tensor: int
    """Its number in the batch."""
    axis: int
    shift: int
    """It is T + shift long: targets of the next token may be one shorter."""


@dataclass(frozen=True)
class Axes:
    """All axes that grow with T; the first of them is T long."""

    of: tuple[Axis, ...]

    def length(self, batch: Batch) -> int | None:
        """T in this batch; None where these axes do not fit together."""
        found = {batch.tensors[own.tensor].shape[own.axis] - own.shift for own in self.of}
        return found.pop() if len(found) == 1 else None

    def form(self, batch: Batch) -> Any:
        """What one program serves: everything about the batch but its size, T and its numbers."""
        identity, tensors = batch.form
        shapes = [list(shape) for shape, *_ in tensors]
        for own in self.of:
            if own.tensor >= len(shapes) or own.axis > len(shapes[own.tensor]):
                return None
            shapes[own.tensor][own.axis - 1] = None
        kinds = tuple((tuple(shape), *others) for shape, (_, *others) in zip(shapes, tensors, strict=True))
        return "any length", self, identity, kinds

    def at(self, batch: Batch, length: int) -> Batch:
        """The batch with these axes as long as they are at another T: cut off, or begun again at their end."""
        tensors = list(batch.tensors)
        for own in self.of:
            tensor, wanted = tensors[own.tensor], max(0, length + own.shift)
            places = torch.arange(wanted, device=tensor.device) % max(1, tensor.shape[own.axis])
            tensors[own.tensor] = tensor.detach().index_select(own.axis, places)
        return replace(batch, tensors=tuple(tensors))

    def in_words(self, batch: Batch) -> str:
        labels = batch.layout.labels
        return ", ".join(f"axis {own.axis} of {labels[own.tensor]}" + (f" ({own.shift:+d})" if own.shift else "")
                         for own in self.of)


def between(first: Any, second: Any) -> Axes | str | None:
    """The axes in which two batches' forms differ; why they are not those of one length; None where other things than
    lengths differ, or nothing does."""
    (identity, own), (other_identity, others) = first, second
    if identity != other_identity or len(own) != len(others):
        return None
    found: list[tuple[int, int, int, int]] = []
    for number, ((shape, *kind), (other, *other_kind)) in enumerate(zip(own, others, strict=True)):
        if kind != other_kind or len(shape) != len(other):
            return None
        found += [(number, axis, before, after) for axis, (before, after) in enumerate(
            zip(shape, other, strict=True), 1) if before != after]
    if not found:
        return None
    _, _, before, after = found[0]
    if any(length - before != other - after for _, _, length, other in found):
        return "several lengths vary, each by itself"
    return Axes(tuple(Axis(number, axis, length - before) for number, axis, length, _ in found))


def declared(dynamic: Mapping[str, Sequence[int]], batch: Batch) -> Axes:
    """Those that the user names, by the names that the generated file gives the batch's tensors. Raises OptionError for
    tensors and axes that there are none of, InputError where they are of very different lengths."""
    names = batch.layout.names
    findings = []
    for name, axes in dynamic.items():
        if name not in names:
            findings.append(f"there is no {name!r}; there are {', '.join(map(repr, names))}")
            continue
        dims = batch.tensors[names.index(name)].dim()
        findings += [f"{name!r} has the axes 1 to {dims - 1} behind that of the samples, but no {axis}"
                     for axis in axes if not 1 <= axis < dims]
    if findings:
        raise OptionError(listing("dynamic does not fit this batch:", findings))
    places = [(names.index(name), axis) for name, axes in dynamic.items() for axis in axes]
    lengths = [batch.tensors[number].shape[axis] for number, axis in places]
    shifts = [length - lengths[0] for length in lengths]
    if any(abs(shift) > MOST_SHIFT for shift in shifts):
        raise InputError(f"dynamic names axes of lengths {', '.join(map(str, lengths))}: one program has one length T, "
                         "and its axes are T long, or a few more or less; leave dynamic out")
    return Axes(tuple(Axis(number, axis, shift) for (number, axis), shift in zip(places, shifts, strict=True)))


MOST_SHIFT = 4
"""How far axes of one T may be apart."""
