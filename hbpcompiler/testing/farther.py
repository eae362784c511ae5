"""A rule at larger values than the rest of the contract draws: what is right near zero may be wrong beyond."""

from __future__ import annotations

import torch

from hbpcompiler.rule import Case, Factor, Pieces, Rule
from hbpcompiler.seeded import seed_cpu
from hbpcompiler.testing.brute_force import hessian, pull_back
from hbpcompiler.testing.compare import close, residual_matrix
from hbpcompiler.testing.setting import SAMPLES, Setting

FARTHER = 8.0
"""Times the standard normal."""


def check_farther(rule: Rule, operation: str, case: Case, where: str) -> None:
    """Value, columns back and residual where tensors are some times as large. Not of a case with makers of its own, who
    know what values the operation takes."""
    if case.make:
        return
    seed_cpu(0)
    where = f"{where}, at values up to {3 * FARTHER:.0f}"
    setting = Setting(rule, operation, case, scale=FARTHER)
    expected = setting.reference()
    if not expected.isfinite().all():
        return
    op = setting.op()
    close(op.output, expected, f"{where}: forward")
    columns = torch.randn(SAMPLES, 2, *op.shape("output"), dtype=torch.float64)
    for name, i in setting.inputs(setting.active()):
        found = rule.jac_t[name](op, columns, *([] if i is None else [i]))
        close(found, pull_back(setting, name, columns, i), f"{where}: jac_t of {name}")
    names, residual = setting.active(), rule.residual_of(op)
    if not names or isinstance(residual, Factor | Pieces):
        return
    active = [name if i is None else f"{name}.{i}" for name, i in setting.inputs(names)]
    gradient = columns[:, 0]
    second = hessian(setting, names, lambda output, n: (output[n] * gradient[n]).sum())
    close(residual_matrix(residual, op, active, gradient, second.shape[-1]), second, f"{where}: residual")
