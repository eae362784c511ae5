"""What becomes of each operation of torch's core ATen set: a rule, a decomposition, no derivative, or a refusal.

The set is torch's own (operations with torch.Tag.core), the verdicts come from the registry, from torch's
decompositions and from the operations themselves. Only the reasons for refusals are written down here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.pipeline import trace_and_match
from hbpcompiler.compiler.trace.batch import batch_of
from hbpcompiler.rule import Case
from hbpcompiler.rule.registry import Registry
from hbpcompiler.testing.layer import CaseLayer
from hbpcompiler.testing.setting import SAMPLES

_BACKWARD = "a backward pass, which only autograd inside a model makes; take derivatives outside the model"
_COMPLEX = "its result or input is complex; derivatives here are those of real numbers"

REFUSED: Mapping[str, str] = {
    "aten._adaptive_avg_pool2d_backward": _BACKWARD,
    "aten.avg_pool2d_backward": _BACKWARD,
    "aten.convolution_backward": _BACKWARD,
    "aten.embedding_dense_backward": _BACKWARD,
    "aten.max_pool2d_with_indices_backward": _BACKWARD,
    "aten.native_group_norm_backward": _BACKWARD,
    "aten.native_layer_norm_backward": _BACKWARD,
    "aten._fft_c2r": _COMPLEX,
    "aten._fft_r2c": _COMPLEX,
    "aten._embedding_bag": "one row of indices for all bags has no sample axis; nn.EmbeddingBag on indices [N, length] "
                           "has a rule",
    "aten._local_scalar_dense": "a number made of a tensor's values (item()), which a compiled program cannot follow",
    "aten._pdist_forward": "distances between the rows of one matrix, which are samples; torch.cdist has a rule",
    "aten.as_strided": "a view of memory that knows nothing of axes; use slices, select, unfold or reshape",
    "aten.convolution": "one name for all convolutions; F.conv1d, F.conv_transpose1d and so on have rules",
    "aten.masked_scatter": "it takes elements in the order of all samples' masks; use torch.where",
    "aten.prod.default": "the product over everything mixes the samples; take it over axes after the sample axis",
    "aten.scatter_reduce": "what it keeps depends on all that meets at a place; use scatter, scatter_add or index_add",
}
"""Core operations that cannot be differentiated here, and why; those with an overload mean that one alone."""

DECOMPOSED: Mapping[str, Case] = {
    "aten.reflection_pad1d": Case({"self": (2, 3)}, {"padding": [1, 2]}),
    "aten.reflection_pad2d": Case({"self": (1, 3, 3)}, {"padding": [1, 0, 2, 1]}),
    "aten.reflection_pad3d": Case({"self": (1, 2, 2, 3)}, {"padding": [1, 0, 0, 1, 1, 1]}),
    "aten.replication_pad2d": Case({"self": (1, 3, 2)}, {"padding": [1, 0, 2, 1]}),
    "aten.replication_pad3d": Case({"self": (1, 2, 1, 2)}, {"padding": [1, 0, 0, 1, 1, 1]}),
}
"""A use of each core operation that torch's own table takes apart, on which this is tried."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of one operation."""

    operation: str
    """ATen name with overload: "aten.sum.dim_IntList"."""
    kind: str
    """"rule", "decomposed", "no derivative", "refused"; "unknown" if nobody has said why."""
    detail: str
    """The rule's file, the operations it becomes, why it has no derivative, or why it is refused."""


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
    for like in (torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)):  # bitwise operations take no floating point
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
    features = torch.ones(SAMPLES, 2, dtype=torch.float64)
    batch = batch_of([features, *layer.extras, features])
    graph, _, _, _ = trace_and_match(layer, lambda output, target: output.sum(), batch, registry)
    around = {"aten.linear", "aten.reshape", "aten.view", "aten.sum"}
    called = {made.target for made in graph.operations if registry.find(made.target, made.overload) is not None}
    return sorted(name.removeprefix("aten.") for name in called - around)
