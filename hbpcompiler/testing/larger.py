"""A rule on more samples and columns: each sample and column is as it is among fewer, which the rest compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule import Case, Diagonal, Op, Rule
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.compare import close
from hbpcompiler.testing.setting import Setting

SAMPLES, COLUMNS = 5, 4
PARTS = (slice(0, 2), slice(2, 5))


def check_larger(rule: Rule, operation: str, case: Case, where: str) -> None:
    """Value, columns back and a diagonal residual of five samples and four columns, against those of parts of both."""
    seed_cpu(0)
    setting = Setting(rule, operation, case, samples=SAMPLES)
    try:
        setting.reference()
    except (RuntimeError, IndexError):  # a size among its attributes is that of three samples
        return
    op = setting.op()
    if case.numbering or not op.has_samples("output"):
        return
    close(op.output, setting.reference(), f"{where}: forward of {SAMPLES} samples")
    columns = torch.randn(SAMPLES, COLUMNS, *op.shape("output"), dtype=torch.float64)
    for name, i in setting.inputs(setting.active()):
        position = [] if i is None else [i]

        def back(op: Op, columns: Tensor, name: str = name, position: list[int] = position) -> Tensor:
            return rule.jac_t[name](op, columns, *position)

        _compare(op, columns, back, f"{where}: jac_t of {name}", split=True)
    residual = rule.residual_of(op)
    if isinstance(residual, Diagonal):
        _compare(op, columns[:, 0], residual.diagonal, f"{where}: residual")


def _compare(op: Op, given: Tensor, function: Callable[[Op, Tensor], Tensor], where: str,
             split: bool = False) -> None:
    """Samples by themselves; `split`: columns, too."""
    whole = function(op, given)
    for rows in PARTS:

        def of_part(tensor: Any, batched: bool, rows: slice = rows) -> Any:
            return tensor[rows] if batched and isinstance(tensor, Tensor) else tensor

        part = op.bound_again(of_part)
        found = function(part, given[rows])
        close(whole[rows], found, f"{where}, of {SAMPLES} samples")
        if split:
            few = torch.cat([function(part, columns) for columns in given[rows].tensor_split(2, 1)], 1)
            close(found, few, f"{where}, of {COLUMNS} columns")
