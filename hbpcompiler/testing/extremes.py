"""Elementwise operations at extreme values and in half precision."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from hbpcompiler.rule import Case, Diagonal, Rule
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.expression import by_double_backward
from hbpcompiler.testing.setting import Setting

ROUNDING = 1e-8
"""Of float64, where torch's softplus is linear in its second derivative and not yet in its first."""


def check_extremes(rule: Rule, operation: str, case: Case) -> None:
    """Derivatives at +-1e4 and near 0 are torch's, finite, and agree with float64 in float32 and bfloat16."""
    (name,) = rule.jac_t
    values = torch.tensor([-1e4, -80.0, -20.0, -4.0, -0.5, -0.01, 0.01, 0.5, 4.0, 20.0, 80.0, 1e4])
    if name in case.make and (case.make[name]((1000,)) > 0).all():
        values = values[values > 0]
    _check_torch(rule, operation, case, name, values if (values > 0).all() else torch.cat([values, torch.zeros(1)]))
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        rounded = values.to(dtype)

        def results(dtype: torch.dtype, rounded: Tensor = rounded) -> list[Tensor]:
            seed_cpu(0)
            draw = {**case.make, name: lambda shape: rounded.double().expand(1, *shape[1:])}
            channels = case.shapes[name][:1] if len(case.shapes) > 1 else ()
            shaped = Case({**case.shapes, name: (*channels, len(rounded))}, case.attributes, case.batched,
                          case.index, draw)
            op = Setting(rule, operation, shaped, dtype).op()
            assert rule.derivative is not None
            found = [op.output, rule.derivative(op)]
            found += [backward(op, torch.ones_like(op.output)) for backward in rule.backward.values()]
            residual = rule.residual_of(op)
            if isinstance(residual, Diagonal):
                found.append(residual.diagonal(op, torch.ones_like(op.output)))
            return found

        def around(order: int, rounded: Tensor = rounded, step: float = torch.finfo(dtype).eps / 4) -> Tensor:
            """What rounding the input alone changes."""
            near = torch.stack([results(torch.float64, rounded.double() * (1 + i * step))[order] for i in range(-4, 5)])
            return near.amax(0) - near.amin(0)

        for order, (low, high) in enumerate(zip(results(dtype), results(torch.float64), strict=True)):
            where = f"{operation}: derivative {order} in {dtype}"
            assert low.dtype == dtype, f"{where}: became {low.dtype}"
            meant = torch.isfinite(high) & (high.abs() < torch.finfo(dtype).max)  # exp(1e4) may be infinite
            low, high = torch.where(meant, low, 0), torch.where(meant, high, 0)
            assert torch.isfinite(low).all(), f"{where}: not finite at {rounded.expand_as(low)[~torch.isfinite(low)]}"
            error = (low.double() - high).abs() / (1 + high.abs())
            if error.max() >= tolerance:  # nothing is said of a rule where the input's rounding does it, at sin(1000.)
                error = torch.where(2 * around(order) > tolerance * (1 + high.abs()), 0, error)
            place = rounded.expand_as(error).flatten()[error.argmax()]
            assert error.max() < tolerance, f"{where}: off by {error.max():.1e} at {place}"


def _check_torch(rule: Rule, operation: str, case: Case, name: str, values: Tensor) -> None:
    """Value, derivative and a diagonal residual in float64 are torch's, where those are finite; whatever is drawn."""
    seed_cpu(0)
    channels = case.shapes[name][:1] if len(case.shapes) > 1 else ()
    draw = {**case.make, name: lambda shape: values.double().expand(1, *shape[1:])}
    setting = Setting(rule, operation, replace(case, shapes={**case.shapes, name: (*channels, len(values))}, make=draw))
    point = setting.tensor(name).clone().requires_grad_()
    output = setting.reference({name: point})
    wanted = [output.detach(), *_derivatives(output, point)]
    op = setting.op()
    residual = rule.residual_of(op)
    assert rule.derivative is not None
    found = [op.output, rule.derivative(op)]
    if isinstance(residual, Diagonal):
        found.append(residual.diagonal(op, torch.ones_like(op.output)))
    for order, (ours, theirs) in enumerate(zip(found, wanted, strict=False)):
        gap = torch.where(theirs.isfinite(), (ours - theirs).abs() / (1 + theirs.abs()), 0.0)
        place = setting.tensor(name).flatten()[gap.nan_to_num(math.inf).argmax()]
        what = "value" if order == 0 else f"derivative {order}"
        assert (gap <= ROUNDING).all(), f"{operation}: {what} is {gap.max():.1e} off torch's, at {place:.4g}"


def _derivatives(output: Tensor, point: Tensor) -> list[Tensor]:
    """First and second, or the first alone where torch has no second one of it."""
    try:
        return by_double_backward(output, point)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        return [torch.autograd.grad(output.sum(), point, retain_graph=True)[0]]
