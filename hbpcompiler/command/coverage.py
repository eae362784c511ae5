"""What becomes of each operation of torch's core ATen set: a rule, a derived rule, a decomposition, no derivative, or a
refusal.

The set is torch's own (operations with torch.Tag.core), the verdicts come from the registry, from torch's
decompositions and from the operations themselves; the reasons for refusals stand beside the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.in_pieces import taken_apart
from hbpcompiler.compiler.match.match import with_rules
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.compiler.trace.trace import trace
from hbpcompiler.rule import Case
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.refused import COMPLEX, DECOMPOSED, REFUSED
from hbpcompiler.testing.layer import FRAME, CaseLayer
from hbpcompiler.testing.setting import SAMPLES


@dataclass(frozen=True)
class Verdict:
    """What becomes of one operation."""

    operation: str
    """ATen name with overload: "aten.sum.dim_IntList"."""
    kind: str
    """"rule", "derived", "decomposed", "no derivative", "refused"; "unknown" if nobody has said why."""
    detail: str
    """The rule's file, what it is derived of, the operations it becomes, why it has no derivative, or is refused."""


def core_operations() -> Iterator[Any]:
    """The overloads that torch calls core, those that write into a given tensor left out."""
    for name in sorted(dir(torch.ops.aten)):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            found = getattr(packet, overload)
            if torch.Tag.core in found.tags and not found._schema.is_mutable:
                yield found


def core_coverage(registry: Registry) -> list[Verdict]:
    """A verdict for each core operation, by name."""
    return [verdict(overload, registry) for overload in core_operations()]


def verdict(overload: Any, registry: Registry) -> Verdict:
    """What becomes of this overload."""
    target, name = name_of(overload)
    whole = f"{target}.{name}"
    if registry.find(target, name) is not None:
        file = registry.files[whole if whole in registry.rules else target]
        return Verdict(whole, "rule", Path(file).name)
    if (why := REFUSED.get(whole) or REFUSED.get(target)) is not None:
        return Verdict(whole, "refused", why)
    if target in COMPLEX:
        return Verdict(whole, "derived", "complex numbers between real ones: one rule, made of torch's derivatives")
    if (why := no_derivative(overload)) is not None:
        return Verdict(whole, "no derivative", why)
    own = registry.decomposition(target, name)
    case = own.cases[0] if own is not None else DECOMPOSED.get(whole) or DECOMPOSED.get(target)
    if case is not None:
        return Verdict(whole, "decomposed", ", ".join(pieces(whole, case, registry)))
    return Verdict(whole, "unknown", "")


def name_of(overload: Any) -> tuple[str, str]:
    """("aten.sum", "dim_IntList")."""
    return str(overload._schema.name).replace("::", "."), overload._overloadname


def no_derivative(overload: Any) -> str | None:
    """Why this operation's result depends on no number smoothly: seen from its schema, or from a small use of it."""
    schema = overload._schema
    if not any("Tensor" in str(argument.type) for argument in schema.arguments):
        return "it has no tensor to depend on"
    if not any("Tensor" in str(result.type) for result in schema.returns):
        return "its result is no tensor"
    ones = torch.ones(2, 2, device="cpu")
    for like in (ones, ones.bool()):  # bitwise operations take no floating point
        try:
            results = overload(*[_filled(argument, like) for argument in schema.arguments if not argument.kwarg_only])
        except (RuntimeError, TypeError, IndexError):
            continue
        first = results[0] if isinstance(results, tuple | list) else results
        return None if first.is_floating_point() else "its result is no floating-point number"
    return None


def _filled(argument: Any, like: Tensor) -> Any:
    """Something that an argument of this type may be."""
    if argument.has_default_value():
        return argument.default_value
    return like if isinstance(argument.type, torch.TensorType) else [0] if "[]" in str(argument.type) else 0


def pieces(operation: str, case: Case, registry: Registry) -> list[str]:
    """The operations with a rule that this one becomes in a network. Raises UnsupportedOpError if others remain."""
    layer = CaseLayer(None, operation, case, 2)
    features = torch.ones(SAMPLES, 2, dtype=torch.float64, device="cpu")
    batch = batch_of([features, *layer.extras, features])
    traced = trace(layer, lambda output, target: output.sum(), batch, registry.modules)
    graph, _ = with_rules(taken_apart(traced, registry).graph, registry)
    called = {made.target for made in graph.operations if registry.find(made.target, made.overload) is not None}
    return sorted(name.removeprefix("aten.") for name in called - FRAME)
