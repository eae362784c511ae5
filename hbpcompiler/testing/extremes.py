"""Elementwise operations at extreme values and in half precision."""

from __future__ import annotations

import torch
from torch import Tensor

from hbpcompiler.rule import Case, Diagonal, Rule
from hbpcompiler.seeded import seed_cpu
from hbpcompiler.testing.setting import Setting


def check_extremes(rule: Rule, operation: str, case: Case) -> None:
    """Derivatives at +-1e4 and near 0 are finite and agree with float64 in float32 and bfloat16."""
    (name,) = rule.jac_t
    values = torch.tensor([-1e4, -80.0, -20.0, -4.0, -0.5, -0.01, 0.01, 0.5, 4.0, 20.0, 80.0, 1e4])
    if name in case.make and (case.make[name]((1000,)) > 0).all():
        values = values[values > 0]
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        rounded = values.to(dtype)

        def results(dtype: torch.dtype, rounded: Tensor = rounded) -> list[Tensor]:
            seed_cpu(0)
            draw = {**case.make, name: lambda shape: rounded.double().expand(1, *shape[1:])}
            channels = case.shapes[name][:1] if len(case.shapes) > 1 else ()
            shaped = Case({**case.shapes, name: (*channels, len(rounded))}, case.attributes, case.batched,
                          case.overload, case.index, draw)
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
