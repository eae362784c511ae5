"""Part of `check_rule`: attributes that a rule's cases leave at their defaults are tried at another value, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.rule import Case, LossRule, Rule, Structure
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.setting import Setting

_NUMBERS = ("float", "number", "Optional[float]", "Optional[number]")
_UNSET = 1.0
"""Around which a number is tried that is None if nobody gives it."""


def further_cases(rule: Rule | LossRule, operation: str) -> Iterator[Case]:
    """The rule's first case with another value of one attribute each: of those that torch and the rule take.

    Whole numbers are numbers of elementwise operations alone: elsewhere they may be axes, the samples' among them.
    """
    case = rule.cases[0]
    seed_cpu(0)
    usual = Setting(rule, operation, case)
    for argument in usual.overload._schema.arguments:
        name = argument.name
        given = [one.attributes[name] for one in rule.cases if name in one.attributes]
        if not argument.has_default_value() or any(name in one.shapes for one in rule.cases) or any(
                value != argument.default_value for value in given):
            continue
        for value in _others(str(argument.type), argument.default_value, _is_elementwise(rule)):
            other = replace(case, attributes={**case.attributes, name: value})
            if _is_taken(rule, operation, other, usual):
                yield other
                break


def _is_elementwise(rule: Rule | LossRule) -> bool:
    return isinstance(rule, Rule) and rule.structure is Structure.ELEMENTWISE


def _others(kind: str, default: Any, elementwise: bool) -> Sequence[Any]:
    if kind == "bool":
        return [not default]
    if kind in _NUMBERS:
        own = _UNSET if default is None else float(default)
        return [own + 0.3, 0.6 * own, own - 0.3]
    if kind == "int" and elementwise:
        return [default + 1, default - 1]
    return []


def _is_taken(rule: Rule | LossRule, operation: str, case: Case, usual: Setting) -> bool:
    seed_cpu(0)
    try:
        setting = Setting(rule, operation, case)
        made = setting.reference()
        if made.dim() != usual.reference().dim() or not torch.isfinite(made).all():
            return False
        return _has_dense_gradients(setting) and rule.refuse(setting.op()) is None
    except (RuntimeError, IndexError, ValueError, NotImplementedError):
        return False


def _has_dense_gradients(setting: Setting) -> bool:
    """Not of an embedding with sparse=True, with which nothing could be compared."""
    points = {name: value.clone().requires_grad_() for name in setting.case.shapes
              if isinstance(value := setting.arguments[name], torch.Tensor) and value.is_floating_point()}
    made = setting.reference(points)
    if not points or not made.requires_grad:
        return True
    found = torch.autograd.grad(made.sum(), list(points.values()), allow_unused=True)
    return all(gradient is None or gradient.layout is torch.strided for gradient in found)
