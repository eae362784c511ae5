"""Arguments of operations that depend on the batch's size, as in x / x.shape[0] or x.clamp(max=x.shape[0]).

Rules are plain functions, and some ask more of a number than that it can be multiplied: which of two is larger, its
value for a formula. Whether a rule can take a number that is known only when the program runs is tried out here, on
stand-ins of all kinds, so that what cannot be is refused by name.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.match.operation.bind import bind, static_op
from hbpcompiler.compiler.match.operation.stand_ins import StandIns, meta_number
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, has_batchs_size
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule import Diagonal, Factor, LossRule, Op, computed
from hbpcompiler.rule.registry import AnyRule

FAILURES = (TypeError, ValueError, AttributeError, RuntimeError, KeyError, IndexError)
"""What Python, sympy, torch and torch.fx raise at a number that is none."""


def refuse_numbers(operation: Operation, rule: AnyRule, active: AbstractSet[str]) -> str | None:
    """Why the rule cannot take this operation's arguments that depend on the batch's size, if it has such."""
    names = [name for name, item in operation.attributes.items() if has_batchs_size({name: item})]
    if not names:
        return None
    try:
        _try_out(operation, rule, active)
    except FAILURES:
        given = ", ".join(f"{name}={operation.attributes[name]}" for name in names)
        return (f"its argument {given} depends on the number of samples, which is known only when a program runs, and "
                "there is no rule for that; use a number, or multiply or divide by it in an operation of its own")
    return None


def _try_out(operation: Operation, rule: AnyRule, active: AbstractSet[str]) -> None:
    """All that the compiler does with the rule: questions without tensors, shapes on meta tensors, code on proxies."""
    op = static_op(operation, active)
    if rule.refuse(op) is not None:
        return  # refused for that reason
    _carried_out(rule, bind(operation, StandIns(operation, rule), active, number=meta_number(operation)))
    tracer = fx.proxy.GraphAppendingTracer(fx.Graph())
    proxies: dict[str, Any] = {slot: _proxy(tracer) for slot in [*operation.tensors, "output"]}
    batch = _proxy(tracer)
    live = bind(operation, proxies.__getitem__, active, number=lambda name, item: arithmetic(item, batch))
    if rule.forward is not None:
        _, saved = computed(rule, live)
        proxies |= saved
    _carried_out(rule, live)


def _proxy(tracer: fx.proxy.TracerBase) -> fx.Proxy:
    return fx.Proxy(tracer.create_node("placeholder", "given", (), {}), tracer)


def _carried_out(rule: AnyRule, op: Op) -> None:
    """The rule's functions for these stand-ins."""
    if isinstance(rule, LossRule):
        rule.gradient(op)
        return
    for slot in sorted(op.varying() or ()):
        if slot in rule.jac_t:
            rule.jac_t[slot](op, op.output.unsqueeze(1))
    for contraction in rule.params(op).values():
        if contraction.operand is not None:
            contraction.operand(op)
    if rule.elementwise_in(op) and rule.derivative is not None:
        rule.derivative(op)
    residual = rule.residual_of(op)
    if isinstance(residual, Diagonal):
        residual.diagonal(op, torch.empty_like(op.output))
    elif isinstance(residual, Factor):
        residual.count(op)
        residual.factor(op, torch.empty_like(op.output))

