"""Labels that a loss makes of the batch, as torch.where(mask, y, -100): made again, to count those that count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.compiler.match.losses.growth import FAILURES
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.compiler.trace.numbers import arithmetic, depends_on_batch


def made_of(matched: Matched, value: Value, batch: Batch) -> Tensor | None:
    """The value, by the operations that make it of inputs and targets; None where something else enters: outputs,
    parameters, draws, or what torch cannot call by itself."""
    tensors = zip((*matched.graph.inputs, *matched.graph.targets), batch.tensors, strict=True)
    known = {given.name: tensor.detach() for given, tensor in tensors}
    try:
        with torch.no_grad():
            found = _found(matched, value, batch.samples, known)
    except (*FAILURES, _ElseError):
        return None
    return found if found.numel() == math.prod(_shape(value, batch.samples)) else None


class _ElseError(Exception):
    """Something enters that is not of the batch."""


def _found(matched: Matched, value: Value, samples: int, known: dict[str, Tensor]) -> Tensor:
    if value.name not in known:
        maker = matched.graph.makers.get(value.name)
        if maker is None or value.name in matched.active or not _callable(maker):
            raise _ElseError
        given = {slot: _found(matched, above, samples, known) for slot, above in maker.tensors.items()}
        result: Tensor = aten.call(maker, aten.overload_of(maker), given.__getitem__,
                                   lambda item: arithmetic(item, samples) if depends_on_batch(item) else item)
        known[value.name] = result.reshape(_shape(value, samples))
    return known[value.name]


def _callable(operation: Operation) -> bool:
    """Whether calling it again makes the same."""
    if not aten.is_torchs(operation) or aten.is_own(operation):
        return False
    overload = aten.overload_of(operation)
    return not overload._schema.is_mutable and torch.Tag.nondeterministic_seeded not in overload.tags


def _shape(value: Value, samples: int) -> list[int]:
    return [arithmetic(length, samples) if depends_on_batch(length) else int(length) for length in value.shape]

