"""An operation of the graph as a call of torch.ops.aten, and what torch can take apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.shared.torch_operations import READ_IN_ORDER, WITH_COPIES

OURS = ("parameter", "derived", "fused")
"""The namespaces of operations that torch does not know: parameters' values, derived rules, what `fuse` joins."""
NAMESPACE = "hbpcompiler"
"""That of the operations that rule files of this library define for torch."""
DECOMPOSITION_ROUNDS = 6
"""Decompositions of decompositions, at most."""


def is_torchs(operation: Operation) -> bool:
    """Whether torch knows the operation: it is none that this library makes."""
    return operation.target.split(".", 1)[0] not in OURS


def is_own(operation: Operation) -> bool:
    """Whether rule files of this library define the operation, for torch too: no program may call it, so that it is
    written in others, or as its rule has it, whether derivatives pass it or not."""
    return operation.target.startswith(f"{NAMESPACE}.")


def is_users(operation: Operation) -> bool:
    """Whether neither torch nor this library brings the operation: its kernel may read memory in order."""
    return is_torchs(operation) and not operation.target.startswith(("aten.", "prims.", f"{NAMESPACE}."))


def is_pointwise(operation: Operation) -> bool:
    """Whether torch says that each element of the result is made of the elements at its place."""
    return is_torchs(operation) and torch.Tag.pointwise in overload_of(operation).tags


def draws(operation: Operation) -> bool:
    """Whether it draws random numbers."""
    return is_torchs(operation) and torch.Tag.nondeterministic_seeded in overload_of(operation).tags


def is_differentiable(operation: Operation) -> bool:
    """Whether torch may know a derivative of the operation: it is none of `prims`, and changes nothing in place."""
    return not operation.target.startswith("prims.") and not overload_of(operation)._schema.is_mutable


def overload_of(operation: Operation) -> Any:
    """The OpOverload that was traced."""
    return getattr(packet_of(operation), operation.overload or "default")


def packet_of(operation: Operation) -> Any:
    """The operation under its name without overload."""
    namespace, name = operation.target.split(".", 1)
    return getattr(getattr(torch.ops, namespace), name)


def callee(operation: Operation) -> Any:
    """What a program calls in its place, under its name without overload: batches may lie otherwise than the first. Of
    a user's overloads each is another function, and torch takes the first that the arguments fit."""
    overload, packet = overload_of(operation), packet_of(operation)
    return overload if is_users(operation) and len(packet.overloads()) > 1 else WITH_COPIES.get(overload, packet)


def in_lists(operation: Operation, name: str) -> list[str]:
    """The slots of the tensors that the argument of this name is a list of: "tensors.0", which no other text is."""
    return [slot for slot in operation.tensors if slot.startswith(f"{name}.")]


def call(operation: Operation, run: Callable[..., Any], tensor: Callable[[str], Any],
         other: Callable[[Any], Any] = lambda item: item) -> Any:
    """`run(*arguments)` in the schema's order, tensors by slot; of several results the operation's own."""
    in_order = overload_of(operation) in READ_IN_ORDER or is_users(operation)

    def argument(item: Any, slots: Sequence[str]) -> Any:
        if isinstance(item, list):
            return [argument(part, slots) for part in item]
        if not (isinstance(item, str) and item in slots):  # the mode "x" of a function of x
            return other(item)
        return tensor(item).contiguous() if in_order else tensor(item)

    positional, keywords = [], {}
    schema = overload_of(operation)._schema
    for entry in schema.arguments:
        item = (argument(entry.name, [entry.name]) if entry.name in operation.tensors else
                argument(operation.attributes[entry.name], in_lists(operation, entry.name)))
        if entry.kwarg_only:
            keywords[entry.name] = item
        else:
            positional.append(item)
    result = run(*positional, **keywords)
    several = len(schema.returns) > 1 or isinstance(schema.returns[0].type, torch.ListType)
    return result[operation.index] if several else result


def decompositions(missing: Sequence[Operation], registry: Registry, curved: bool = False) -> dict[Any, Any]:
    """How these operations are taken apart, by overload."""
    table = {}
    for operation in missing:
        known = registry.decomposition(operation.target, operation.overload) is not None
        if not (operation.target.startswith("aten.") or is_own(operation) or known):
            continue
        overload = overload_of(operation)
        if (made := decomposition(overload, registry, curved)) is not None:
            table[overload] = made
    return table


def decomposition(overload: Any, registry: Registry, curved: bool = False) -> Callable[..., Any] | None:
    """How this overload is taken apart: as a rule file says, or else by torch's own table; None if by neither.

    `curved`: second derivatives of the pieces have to be those of the operation too.
    """
    from torch._decomp import decomposition_table

    own = registry.decomposition(overload._schema.name.replace("::", "."), overload._overloadname)
    if own is not None:
        return own.curved if curved and own.curved is not None else own.function
    core = core_decompositions()  # its get() finds less than its [] does
    found: Callable[..., Any] | None = core[overload] if overload in core else decomposition_table.get(overload)
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if found is None and overload.has_kernel_for_dispatch_key(composite):
        found = overload.decompose
    return found


@cache
def core_decompositions() -> Any:
    """Torch's own table. It goes through all operations that there are each time that it is made."""
    from torch._decomp import core_aten_decompositions

    return core_aten_decompositions()
