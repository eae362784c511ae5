"""What the loss says about its targets: checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.checks import refuse_nan
from hbpcompiler.compiler.trace.graph import SAMPLES, Graph, Operation, Value
from hbpcompiler.errors import InputError, InputTypeError, NoTermsError
from hbpcompiler.rule import LossRule, Op, Rule, Structure
from hbpcompiler.rule.convexity import order_sign
from hbpcompiler.rule.registry import AnyRule
from hbpcompiler.rules.shared.torch_operations import ASKS_FOR_NAN, COMPARES


@dataclass(frozen=True)
class LossCheck:
    """What a loss function with a rule demands of the target that it reads."""

    rule: LossRule
    op: Op
    place: int
    """which of the batch's targets it is"""
    operation: str
    """the loss function's name in the graph"""


def loss_checks(matched: Matched) -> list[LossCheck]:
    """One for each loss function that reads a target, be it reshaped."""
    graph, rules, active = matched.graph, matched.rules, matched.active
    names = [value.name for value in graph.targets]
    checks = []
    for operation in matched.ending.reductions:
        rule, target = rules[operation.name], operation.tensors.get("target")
        assert isinstance(rule, LossRule)
        if target is None:
            continue
        given = origin(graph, rules, target, active)
        if given.name in names:
            checks.append(LossCheck(rule, static_op(operation, active), names.index(given.name), operation.name))
    return checks


def slope_of(matched: Matched, operation: Operation) -> int | None:
    """1 or -1 if this loss function is known to rise or fall in its input: as its rule says of targets that it takes.
    One that the loss makes itself nobody checks: it may be negative, unless that is known or makes no difference."""
    rule, target = matched.rules[operation.name], operation.tensors.get("target")
    assert isinstance(rule, LossRule)
    order = order_sign(rule)
    if order is None or target is None or not target.floating or target.name in matched.never_negative:
        return order
    if origin(matched.graph, matched.rules, target, matched.active) in matched.graph.targets:
        return order
    op = static_op(operation, matched.active)
    negative = torch.full((SAMPLES, *op.shape("target")), -1.0, dtype=target.dtype, device="cpu")
    return order if rule.check(op, negative) is None else None


def origin(graph: Graph, rules: Mapping[str, AnyRule], value: Value, active: AbstractSet[str]) -> Value:
    """The value whose elements these are, all of them and unchanged, in another shape or order."""
    while (maker := graph.makers.get(value.name)) is not None and len(maker.tensors) == 1:
        (above,) = maker.tensors.values()
        rule = rules.get(maker.name)
        moves = isinstance(rule, Rule) and rule.structure_of(static_op(maker, active)) is Structure.SELECTION
        flags = above.dtype in (torch.uint8, torch.bool) and not value.floating  # labels, not numbers, are made of them
        same = above.dtype == value.dtype or flags
        if not moves or not same or math.prod(above.shape) != math.prod(value.shape):
            break
        value = above
    return value


def check_target_dtypes(graph: Graph, batch: Batch) -> None:
    """Raise InputTypeError for floating targets of another dtype than all outputs."""
    if not any(target.is_floating_point() for target in batch.targets):
        return
    labels = batch.layout.labels[batch.layout.inputs :]
    dtypes = {output.dtype for output in graph.outputs if output.floating}
    for name, target in zip(labels, batch.targets, strict=True):
        cast = torch.is_autocast_enabled(target.device.type)  # by the loss, which has run on these dtypes
        if target.is_floating_point() and dtypes and target.dtype not in dtypes and not cast:
            dtype = next(iter(dtypes))
            raise InputTypeError(f"{name} has dtype {target.dtype}, the model's output has {dtype}; convert it: "
                                 f"{name}.to({dtype})")


def check_targets(losses: Sequence[LossCheck], graph: Graph, batch: Batch) -> None:
    """The targets' shapes, dtypes and values against the rules of the losses that read them; NaN where no loss asks for
    it."""
    if not batch.samples:
        return
    check_target_dtypes(graph, batch)
    refuse_nan(batch, lambda place: _asks_for_nan(graph, graph.targets[place]))
    labels = batch.layout.labels[batch.layout.inputs :]
    for check in losses:
        name, target = labels[check.place], batch.targets[check.place]
        if (complaint := check.rule.check(check.op, target)) is not None:
            text = f"{name} {complaint}" if complaint.startswith("has ") else f"{name}: {complaint}"
            raise (NoTermsError if _has_no_terms(check, target) else InputError)(text)


def _asks_for_nan(graph: Graph, target: Value) -> bool:
    """Whether the loss tells NaN in these targets from numbers: by ~y.isnan(), or as y >= 0 does."""
    made = nx.descendants(graph.network(), target.name) | {target.name}
    for operation in graph.operations:
        called = aten.packet_of(operation) if aten.is_torchs(operation) else None
        if called in ASKS_FOR_NAN | COMPARES and any(value.name in made for value in operation.tensors.values()):
            return True
    return False


def _has_no_terms(check: LossCheck, target: Tensor) -> bool:
    """Whether labels fit, but all of them are ignored."""
    labels = not target.is_floating_point() and target.shape[1:] == check.op.shape("target")
    return labels and check.rule.terms is not None and check.rule.terms(check.op, target) == 0
