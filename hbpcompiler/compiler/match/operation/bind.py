"""An operation of the graph as the `Op` that its rule sees."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from hbpcompiler.compiler.match.operation.aten import in_lists
from hbpcompiler.compiler.trace.fx_graph.numbers import depends_on_batch
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule import Op, Rule, Zero


def static_op(operation: Operation, active: AbstractSet[str]) -> Op:
    """An Op of attributes and shapes only, for questions that need no tensor."""

    def tensors(name: str) -> Any:
        raise KeyError(name)

    return bind(operation, tensors, active)


def bind(operation: Operation, tensors: Callable[[str], Any], active: AbstractSet[str], differentiated: bool = True,
         number: Callable[[str, Any], Any] = lambda name, item: item, single: bool = False) -> Op:
    """The Op of an operation, whose tensors come from `tensors(slot or saved name or "output")`.

    `number(name, expression)` says what stands for an attribute that depends on the batch's size.
    """
    shapes = {slot: value.sample_shape for slot, value in operation.tensors.items()}
    shapes["output"] = operation.output.sample_shape
    batched = {slot for slot, value in operation.tensors.items() if value.batched}
    if operation.output.batched:
        batched.add("output")
    lists = {name: item for name, item in operation.attributes.items()
             if isinstance(item, list) and any(slot in item for slot in in_lists(operation, name))}

    def find(name: str) -> Any:
        if name in lists:
            return [tensors(slot) if isinstance(slot, str) else slot for slot in lists[name]]
        return tensors(name)

    attributes = {name: number(name, item) if depends_on_batch(item) else item
                  for name, item in operation.attributes.items() if name not in lists}
    # Columns end at a parameter, so it is none of the inputs that a residual or a Jacobian runs between.
    carries = frozenset(slot for slot, value in operation.tensors.items()
                        if value.name in active and value.role != "parameter")
    masks = frozenset(slot for slot, value in operation.tensors.items() if value.dtype == torch.bool)
    numbering = frozenset(slot for slot, value in operation.tensors.items()
                          if value.numbering and value.batched)
    return Op(find, attributes, shapes, index=operation.index, differentiated=differentiated, single=single,
              active=carries, batched=frozenset(batched), numbering=numbering, masks=masks)


def is_curved(rule: Rule, op: Op) -> bool:
    """Whether the operation has a residual at this use."""
    return not isinstance(rule.residual_of(op), Zero)
