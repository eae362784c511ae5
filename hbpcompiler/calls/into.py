"""Results that are added to tensors which the caller keeps: `compiled(X, y, into=previous, decay=0.95)`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from hbpcompiler.arguments import DECAY, INTO, SHARES
from hbpcompiler.calls.overlaps import overlaps_itself, sharing
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.adding import Slot
from hbpcompiler.compiler.program.nodes import shows_its_input
from hbpcompiler.compiler.program.sums import added_
from hbpcompiler.errors import InputError, InputTypeError, listing
from hbpcompiler.quantities import EIGEN, QUANTITIES
from hbpcompiler.result import Result

MOST = 8
"""So many things that are wrong are listed."""


@dataclass(frozen=True)
class Into:
    """Tensors that the results in some slots are added to: decay * what they are + share * the batch's."""

    given: Mapping[Slot, Tensor]
    decay: float
    shares: Mapping[Slot, float]
    same: Mapping[Slot, Slot]
    """Slots whose result, and tensor, is that of another: it is added once."""
    triangles: frozenset[Slot] = frozenset()
    """Symmetric matrices of which the upper triangle is added, and what is below it is no matter."""

    @property
    def tensors(self) -> dict[Slot, Tensor]:
        """Each of them once."""
        return {slot: tensor for slot, tensor in self.given.items() if slot not in self.same}

    def arguments(self) -> dict[str, Any]:
        """What a program that adds is given (see `program.adding`)."""
        return {INTO: {slot.key: tensor for slot, tensor in self.tensors.items()}, DECAY: self.decay,
                SHARES: {slot.key: self.shares[slot] for slot in self.tensors}}


@dataclass(frozen=True)
class Read:
    """What a call reads, which must be what it was until all results are there."""

    model: Mapping[str, Tensor]
    """and the loss's own"""
    batch: Sequence[Tensor]
    arguments: Mapping[str, Any]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each, and what it is in words."""
        yield from ((f"{name!r} of the model itself, which would change", tensor)
                    for name, tensor in self.model.items())
        yield from (("a tensor of the batch, which is read meanwhile", tensor) for tensor in self.batch)
        for name, value in self.arguments.items():
            for tensor in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(tensor, Tensor):
                    yield f"of the argument {name}, which is read meanwhile", tensor


class Adds(Protocol):
    """What a call adds to, before there is a program."""

    def fitting(self, built: Built, samples: Tensor, read: Read) -> Into:
        """What this program needs, for a batch with such tensors; `read` must not change."""


@dataclass(frozen=True)
class Kept:
    """What a call is given, with which numbers: checked against a program by `fitting`."""

    into: Any
    decay: float
    weight: float

    def fitting(self, built: Built, samples: Tensor, read: Read) -> Into:
        """What the program needs. InputError, listing all that does not fit; `read` must not change.

        One tensor may stand for several parameters where their results are one tensor as well.
        """
        given = dict(_given(self.into))
        _check_quantities(list(self.into), built)
        wanted = {slot: node for slot, node in built.slots.items() if slot.quantity in list(self.into)}
        findings = [f"there is no {slot}" for slot in given if slot not in wanted]
        findings += [f"{slot} is missing, {_shape(node)}" for slot, node in wanted.items() if slot not in given]
        both = {slot: given[slot] for slot in wanted if slot in given}
        for slot, tensor in both.items():
            findings += [f"{slot} {fault}" for fault in _faults(tensor, wanted[slot], samples)]
        same: dict[Slot, Slot] = {}
        if not findings:
            findings, same = _shared(both, wanted, read)
        if findings:
            more = [f"and {len(findings) - MOST} more"] if len(findings) > MOST else []
            raise InputError(listing("what the results are to be added to does not fit them:",
                                     [*findings[:MOST], *more]))
        return Into(both, self.decay, dict.fromkeys(both, self.weight), same)


def kept(into: Any, decay: Any, weight: Any) -> Kept | None:
    """The arguments of a call; InputError for numbers, or for what is neither a result nor a dict of quantities."""
    if into is None:
        if decay is not None or weight is not None:
            raise InputError("decay and weight say how results are added to tensors that you keep: give them too, "
                             "compiled(X, y, into=previous, decay=...)")
        return None
    if not isinstance(into, Result | Mapping):
        raise InputTypeError("into must be a result, or a dict from quantity to what a result has under its name, "
                             f"{{'grad': previous.grad}}, not {type(into).__name__}")
    return Kept(into, _number("decay", decay), _number("weight", weight))


def _number(name: str, value: Any) -> float:
    value = 1.0 if value is None else value
    if isinstance(value, Tensor) and not value.dim() and not value.is_complex() and value.dtype != torch.bool:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        advice = f"; take the number that is meant out of it, as in {name}.item()" if isinstance(value, Tensor) else ""
        raise InputError(f"{name} must be a finite number, not {value!r}{advice}")
    return float(value)


def _given(into: Any) -> Iterator[tuple[Slot, Any]]:
    """All tensors, and what stands in the place of one."""
    for quantity in into:
        table = QUANTITIES.get(quantity)
        if table is None or not isinstance(into[quantity], Mapping):
            continue
        for name, value in into[quantity].items():
            if not table.fields:
                yield Slot(quantity, name, ""), value
                continue
            for field in table.fields:
                part = value.get(field) if isinstance(value, Mapping) else getattr(value, field, None)
                if part is not None:
                    yield Slot(quantity, name, field), part


def _check_quantities(asked: list[str], built: Built) -> None:
    findings = []
    has = {slot.quantity for slot in built.slots}
    for name in asked:
        nodes = [node for slot, node in built.slots.items() if slot.quantity == name]
        if name not in QUANTITIES:
            findings.append(f"{name!r} is no quantity")
        elif name not in built.draft.plan.quantities:
            findings.append(f"{name} is not computed; there are {', '.join(built.draft.plan.quantities)}")
        elif QUANTITIES[name].lists or name not in has:
            findings.append(f"{name} has no tensors by parameter that could be added up")
        elif any(closing.kind == EIGEN for closing in QUANTITIES[name].needs):
            findings.append(f"{name}: the eigenvectors of two batches do not add up; add up kfac")
        elif any(not length.isdigit() for node in nodes for length in meta.shape(node) or ()):
            findings.append(f"{name} has axes whose lengths belong to the batch: two batches' do not add up")
    if findings:
        raise InputError(listing("into names quantities that cannot be added to; leave them out, "
                                 "into={'grad': previous.grad, ...}, and the result has this batch's:", findings))


def _shape(node: Any) -> list[int]:
    return [int(length) for length in meta.shape(node) or ()]


def _faults(tensor: Any, node: Any, samples: Tensor) -> Iterator[str]:
    """What is wrong with one tensor."""
    dtype = meta.dtype(node)
    if not isinstance(tensor, Tensor):
        yield f"is {type(tensor).__name__}, not a tensor"
        return
    if tensor.layout != torch.strided:
        yield f"is {str(tensor.layout).removeprefix('torch.')}, and results are dense"
        return
    if list(tensor.shape) != _shape(node):
        yield f"has shape {list(tensor.shape)} instead of {_shape(node)}"
    if tensor.device != samples.device:
        yield f"is on {tensor.device}, and the batch on {samples.device}"
    if dtype is not None and torch.promote_types(tensor.dtype, dtype) != tensor.dtype:
        yield f"is {tensor.dtype}, which cannot hold {dtype}"
    if not tensor.is_floating_point():
        yield f"is {tensor.dtype}: keep sums of counts in torch.float64"
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        yield "was made in inference mode and does not change outside of it: give a clone of it"
    if any(stride == 0 and length > 1 for stride, length in zip(tensor.stride(), tensor.shape, strict=True)):
        yield "is expanded: one number of it stands for several"


def _shared(given: Mapping[Slot, Tensor], made: Mapping[Slot, Any],
            read: Read) -> tuple[list[str], dict[Slot, Slot]]:
    """(what shares memory that must not, slots of which the result and the tensor are those of another slot)."""
    others = list(read.tensors())
    slots = [slot for slot, tensor in given.items() if tensor.numel()]
    findings = [f"{slot} overlaps itself: one number of it stands for several" for slot in slots
                if overlaps_itself(given[slot])]
    same: dict[Slot, Slot] = {}
    seen = [tensor for _, tensor in others if tensor.layout == torch.strided]
    words = [word for word, tensor in others if tensor.layout == torch.strided]
    told = set[Slot]()
    for first, second in sharing([*seen, *(given[slot] for slot in slots)]):
        if second < len(seen):
            continue
        slot = slots[second - len(seen)]
        if slot in told:
            continue
        told.add(slot)
        if first < len(seen):
            findings.append(f"{slot} is {words[first]}: give it memory of its own")
            continue
        other = slots[first - len(seen)]
        if _is_one(given[other], given[slot]) and _source(made[other]) is _source(made[slot]):
            same[slot] = other
        else:
            findings.append(f"{slot} is the memory of {other} as well: give each its own")
    return findings, same


def _is_one(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same numbers."""
    return first.data_ptr() == second.data_ptr() and first.numel() == second.numel()


def _source(node: Any) -> Any:
    """What a view is of."""
    while shows_its_input(node) and node.op == "call_method":
        node = node.args[0]
    return node


def added_to(raw: Any, into: Into) -> None:
    """Add a program's result to the tensors, where the program did not do so itself."""
    for slot, tensor in into.tensors.items():
        value = getattr(raw, slot.quantity)[slot.parameter]
        added_(tensor, getattr(value, slot.field) if slot.field else value, into.decay, into.shares[slot])


def with_tensors(raw: Any, into: Into) -> Any:
    """A program's result with the caller's own tensors in it."""
    found: dict[str, Any] = {name: getattr(raw, name) for name in raw._fields}
    for quantity in {slot.quantity for slot in into.given}:
        found[quantity] = dict(found[quantity])
    for slot, tensor in into.given.items():
        entries = found[slot.quantity]
        own = entries[slot.parameter]
        entries[slot.parameter] = own._replace(**{slot.field: tensor}) if slot.field else tensor
    return SimpleNamespace(**found)
