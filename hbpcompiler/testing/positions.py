"""Part of `check_rule`: whether a loss of samples with positions merged into them is that of the positions apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule import Case, LossRule
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.brute_force import hessian
from hbpcompiler.testing.compare import close, residual_matrix
from hbpcompiler.testing.setting import SAMPLES, Setting

POSITIONS = 2


class _Apart(Setting):
    """Tensors [N, p, *z], or [N, C, p, *z]; the operation is still that of [N p, *z]."""

    def reference(self, changed: Mapping[str, Any] | None = None) -> Tensor:
        given = {**self.arguments, **(changed or {})}
        merged = {name: self._merged(name, given[name]) for name in self.case.shapes if self.batched(name)}
        return super().reference({**given, **merged})

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        assert isinstance(self.rule, LossRule)
        return (tensor.movedim(2, 1) if _has_classes(self.rule, self.case, name) else tensor).flatten(0, 1)


def _has_classes(rule: LossRule, case: Case, name: str) -> bool:
    return rule.positions == 2 and len(case.shapes[name]) == len(case.shapes[rule.input])


def _apart(rule: LossRule, case: Case) -> Case:
    shapes = dict(case.shapes)
    for name in {*shapes} & {*case.batched}:
        front = 1 if _has_classes(rule, case, name) else 0
        shapes[name] = (*shapes[name][:front], POSITIONS, *shapes[name][front:])
    return replace(case, shapes=shapes)


def check_positions(rule: LossRule, operation: str, case: Case, where: str) -> None:
    """Value, gradient and Hessian of the positions apart, against those of what they are merged to."""
    if rule.positions is None or (rule.positions == 2 and not case.shapes[rule.input]):
        return
    seed_cpu(0)
    if Setting(rule, operation, case).reference().dim():
        return
    setting, where = _Apart(rule, operation, _apart(rule, case)), f"{where}: positions={rule.positions}"
    merged = setting.reference()
    if rule.forward is None:  # then a program calls the operation itself
        try:
            own = Setting.reference(Setting(rule, operation, setting.case), setting.arguments)
        except (RuntimeError, IndexError, ValueError) as error:
            raise AssertionError(f"{where}: the operation takes no axis of positions there: {error}") from error
        close(own, merged, f"{where}, but the loss of the positions apart is another")
    op = setting.op()
    if rule.refuse(op) is not None or ("target" in case.shapes and rule.check(op, setting.arguments["target"])):
        return
    close(op.output, merged, f"{where}, but the loss of the positions apart is another")
    scale = SAMPLES if rule.reduction(op) == "mean" else 1
    value = setting.arguments[rule.input].clone().requires_grad_()
    (expected,) = torch.autograd.grad(setting.reference({rule.input: value}), value)
    close(rule.gradient(op), scale * expected, f"{where}: gradient")
    second = hessian(setting, [rule.input], lambda output, _: scale * output)
    found = residual_matrix(rule.residual_of(op), op, [rule.input], None, second.shape[-1], where)
    close(found, second, f"{where}: Hessian")
