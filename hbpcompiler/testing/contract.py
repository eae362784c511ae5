"""The whole contract of a rule in one function: `check_rule(rule)` compares it with autograd in float64.

A user's rule is tested by the same two lines as ours:

    from hbpcompiler.testing import check_rule
    check_rule(my_rule)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule import Case, Diagonal, Factor, LossRule, Op, Residual, Rule, Sliding, Structure, Zero
from hbpcompiler.testing.expression import check_expression
from hbpcompiler.testing.setting import SAMPLES, Setting

COLUMNS = 2


def check_rule(rule: Rule | LossRule) -> None:
    """Raise AssertionError unless every case of the rule keeps the contract.

    Value, shapes, adjointness, transposed Jacobians, parameter contractions, residual against double backward, the
    declared structure, the expression by which operations are joined, and, for elementwise operations, finite and
    accurate derivatives at +-1e4 and in bfloat16.
    """
    assert rule.cases, f"rule for {rule.operations} has no cases"
    for operation in rule.operations:
        for case in rule.cases:
            if isinstance(rule, LossRule):
                check_loss_case(rule, operation, case)
            else:
                check_case(rule, operation, case)
        if isinstance(rule, Rule) and rule.structure is Structure.ELEMENTWISE:
            for case in rule.cases:
                check_extremes(rule, operation, case)


def check_case(rule: Rule, operation: str, case: Case) -> None:
    """One case of an operation's rule."""
    torch.manual_seed(0)
    setting = Setting(rule, operation, case)
    op = setting.op()
    where = f"{operation} {dict(case.shapes)} {dict(case.attributes)}"
    assert rule.refuse(op) is None, f"{where}: the rule refuses its own case"
    _close(op.output, setting.reference(), f"{where}: forward")
    columns = torch.randn(SAMPLES, COLUMNS, *op.shape("output"), dtype=torch.float64)
    active = setting.active()
    for name, i in setting.inputs(active):
        value = setting.tensor(name, i)
        result = rule.jac_t[name](op, columns, *([] if i is None else [i]))
        _close(result, _pull_back(setting, name, columns, i), f"{where}: jac_t of {name}")
        direction = torch.randn_like(value)
        moved = _moved(operation, lambda value: setting.reference(setting.replaced(name, i, value)), value, direction)
        spread = direction.unsqueeze(1) if setting.batched(name, i) else direction
        _close(_flat(result * spread).sum(-1), _flat(columns * moved.unsqueeze(1)).sum(-1),
               f"{where}: adjointness of {name}")
    for name, contraction in rule.params(op).items():
        if name in case.shapes:
            operands = [contraction.columns(op, columns)]
            if contraction.operand is not None:
                operands.append(contraction.operand(op))
            result = torch.einsum(contraction.equation, operands)
            expected = _pull_back(setting, name, columns)
            _close(result.reshape(expected.shape), expected, f"{where}: contraction of {name}")
            units = torch.eye(math.prod(op.shape("output")), dtype=torch.float64).expand(SAMPLES, -1, -1)
            seen = contraction.columns(op, units.reshape(SAMPLES, -1, *op.shape("output")))
            assert ((seen == 0) | (seen == 1)).all(), f"{where}: columns of {name} have coefficients other than 0 and 1"
            if contraction.sliding is not None:
                _check_sliding(contraction.sliding, op, operands[1], f"{where}: sliding windows of {name}")
            if contraction.summed is not None:
                _close(contraction.summed(op, columns[:, 0]), expected[:, 0].sum(0), f"{where}: summed of {name}")
            if contraction.of_sample is not None:
                one = op.bound_again(lambda tensor, batched: tensor[:1] if batched else tensor)
                _close(contraction.of_sample(one, columns[:1]), expected[0], f"{where}: of_sample of {name}")
    _check_structure(rule, setting, op, where)
    _check_window(rule, setting, op, where)
    check_expression(rule, setting, op, where)
    if rule.increasing:
        for name, i in setting.inputs(active):
            assert (_pull_back(setting, name, columns.abs(), i) >= 0).all(), f"{where}: not increasing in {name}"
    if not active:
        return
    gradient = columns[:, 0]
    expected = _hessian(setting, active, lambda output, n: (output[n] * gradient[n]).sum())
    found = _residual_matrix(rule.residual_of(op), op, active, gradient, expected.shape[-1])
    _close(found, expected, f"{where}: residual")
    if rule.convex:
        positive = _residual_matrix(rule.residual_of(op), op, active, gradient.abs(), expected.shape[-1])
        assert torch.linalg.eigvalsh(positive).min() >= -1e-9, f"{where}: not convex"


def _check_window(rule: Rule, setting: Setting, op: Op, where: str) -> None:
    """The same operation, unpadded, makes all outputs of the padded input, and the last of the piece that they read."""
    window = rule.window(op)
    if window is None:
        return
    case, arguments = setting.case, setting.arguments
    names = [slot for slot in case.shapes if setting.batched(slot)]
    attributes = {slot: value for slot, value in arguments.items() if slot not in case.shapes}
    outer, inner = op.shape("output")[1:], op.shape(names[0])[1:]
    for skipped in (0, 1):
        amounts: list[int] = []
        for axis, (size, length) in enumerate(zip(inner, outer, strict=True)):
            kept, stride = max(length - skipped, 1), window.stride[axis]
            first = (length - kept) * stride - window.before[axis]
            last = first + (kept - 1) * stride + window.dilation[axis] * (window.size[axis] - 1) + 1
            amounts = [-first, last - size, *amounts]
        pieces = {name: torch.nn.functional.pad(getattr(op, name), amounts, value=window.fill) for name in names}
        shapes = {name: tuple(piece.shape[1:]) for name, piece in pieces.items()}
        assert rule.forward is not None
        made = rule.forward(Op({**arguments, **pieces}, {**attributes, **window.unpadded},
                               {**case.shapes, **shapes}, index=case.index, differentiated=False))
        kept_output = op.output[(..., *(slice(-max(length - skipped, 1), None) for length in outer))]
        _close(made, kept_output, f"{where}: window, {skipped} outputs left out")


def _check_sliding(sliding: Sliding, op: Op, operand: Tensor, where: str) -> None:
    """Every window place of the rows is that part of the operand."""
    whole = operand.unflatten(2, (sliding.height, -1)).unflatten(1, (sliding.outer, sliding.window, -1))
    rows = sliding.rows(op).unflatten(1, (sliding.outer, -1))
    for place in range(sliding.window):
        start = sliding.step * place
        _close(rows[:, :, :, start : start + sliding.height], whole[:, :, place], f"{where}, place {place}")


def check_loss_case(rule: LossRule, operation: str, case: Case) -> None:
    """One case of a loss: value, per-sample gradient, Hessian and the sampled Hessian's expectation."""
    torch.manual_seed(0)
    setting = Setting(rule, operation, case)
    op = setting.op()
    where = f"{operation} {dict(case.shapes)} {dict(case.attributes)}"
    assert rule.refuse(op) is None, f"{where}: the rule refuses its own case"
    _close(op.output, setting.reference(), f"{where}: forward")
    if "target" in case.shapes:
        assert rule.check(op, setting.arguments["target"]) is None, f"{where}: the rule rejects its own case's target"
        admitted = None if rule.target_shape is None else [tuple(shape) for shape in rule.target_shape(op)]
        assert admitted is None or tuple(case.shapes["target"]) in admitted, f"{where}: target not of {admitted}"
    scale = SAMPLES if rule.reduction(op) == "mean" else 1
    value = setting.arguments[rule.input].clone().requires_grad_()
    (expected,) = torch.autograd.grad(setting.reference({rule.input: value}), value)
    _close(rule.gradient(op), scale * expected, f"{where}: gradient")
    assert not rule.increasing or (expected >= 0).all(), f"{where}: not increasing"
    hessian = _hessian(setting, [rule.input], lambda output, n: scale * output)
    found = _residual_matrix(rule.residual_of(op), op, [rule.input], None, hessian.shape[-1])
    _close(found, hessian, f"{where}: Hessian")
    if rule.sample is not None:
        draws = 40_000
        sampled = rule.sample(op, draws).flatten(2)
        outer = torch.einsum("nka,nkb->nab", sampled, sampled)
        spread = draws**0.5 * torch.einsum("nka,nkb->nab", sampled**2, sampled**2).sqrt()
        excess = (outer - hessian).abs() - 6 * spread / draws**0.5 - 1e-9
        assert (excess < 0).all(), f"{where}: samples' second moment misses the Hessian by {excess.max():.2e}"


def check_extremes(rule: Rule, operation: str, case: Case) -> None:
    """Derivatives at +-1e4 and near 0 are finite and agree with float64 in float32 and bfloat16."""
    (name,) = rule.jac_t
    values = torch.tensor([-1e4, -80.0, -20.0, -4.0, -0.5, -0.01, 0.01, 0.5, 4.0, 20.0, 80.0, 1e4])
    values = values[(values > case.domain[0]) & (values < case.domain[1])]
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        rounded = values.to(dtype)

        def results(dtype: torch.dtype, rounded: Tensor = rounded) -> list[Tensor]:
            torch.manual_seed(0)
            draw = {**case.make, name: lambda shape: rounded.double().expand(1, *shape[1:])}
            channels = case.shapes[name][:1] if len(case.shapes) > 1 else ()
            shaped = Case({**case.shapes, name: (*channels, len(rounded))}, case.attributes, case.batched,
                          case.overload, case.index, draw)
            op = Setting(rule, operation, shaped, dtype).op()
            assert rule.derivative is not None
            found = [op.output, rule.derivative(op)]
            residual = rule.residual_of(op)
            if isinstance(residual, Diagonal):
                found.append(residual.diagonal(op, torch.ones_like(op.output)))
            return found

        for order, (low, high) in enumerate(zip(results(dtype), results(torch.float64), strict=True)):
            where = f"{operation}: derivative {order} in {dtype}"
            assert low.dtype == dtype, f"{where}: became {low.dtype}"
            meant = torch.isfinite(high) & (high.abs() < torch.finfo(dtype).max)  # exp(1e4) may be infinite
            low, high = torch.where(meant, low, 0), torch.where(meant, high, 0)
            assert torch.isfinite(low).all(), f"{where}: not finite at {rounded.expand_as(low)[~torch.isfinite(low)]}"
            error = (low.double() - high).abs() / (1 + high.abs())
            place = rounded.expand_as(error).flatten()[error.argmax()]
            assert error.max() < tolerance, f"{where}: off by {error.max():.1e} at {place}"


def _check_structure(rule: Rule, setting: Setting, op: Op, where: str) -> None:
    structure = rule.structure_of(op)
    if structure is Structure.GENERAL:
        return
    for name, i in setting.inputs(setting.active()):
        size = int(torch.tensor(op.shape("output")).prod())
        unit = torch.eye(size, dtype=torch.float64).reshape(1, size, *op.shape("output"))
        rows = _flat(_pull_back(setting, name, unit.expand(SAMPLES, *unit.shape[1:]), i))
        if structure is Structure.SELECTION:
            assert ((rows == 0) | (rows == 1)).all(), f"{where}: coefficients other than 0 and 1"
            assert ((rows != 0).sum(-1) <= 1).all(), f"{where}: no selection"
        if structure is Structure.CONSTANT:
            _close(rows[:1].expand_as(rows), rows, f"{where}: the Jacobian differs between samples")
            if rule.rows is not None and (given := rule.rows(op)) is not None:
                _close(given.flatten(1), rows[0], f"{where}: rows")
        if structure is Structure.ELEMENTWISE:
            assert rule.derivative is not None
            _close(torch.diag_embed(rule.derivative(op).reshape(SAMPLES, -1)), rows, f"{where}: derivative")


def _moved(operation: str, function: Callable[[Tensor], Tensor], value: Tensor, direction: Tensor) -> Tensor:
    """The derivative in a direction; by differences where torch has no forward mode (grid_sample, which is linear)."""
    try:
        if not operation.startswith("aten."):  # a registered operation has a backward pass only
            moved: Tensor = torch.autograd.functional.jvp(function, (value,), (direction,))[1]
            return moved
        return torch.func.jvp(function, (value,), (direction,))[1]
    except NotImplementedError:
        return (function(value + 1e-4 * direction) - function(value - 1e-4 * direction)) / 2e-4


def _pull_back(setting: Setting, name: str, columns: Tensor, index: int | None = None) -> Tensor:
    """Brute force: one backward pass per sample and column; what the argument receives from that sample alone."""
    value = setting.tensor(name, index).clone().requires_grad_()
    output = setting.reference(setting.replaced(name, index, value))
    results = []
    for n in range(columns.shape[0]):
        for k in range(columns.shape[1]):
            grad = torch.zeros_like(value)  # one result of several need not depend on every input
            if output.requires_grad:
                (grad,) = torch.autograd.grad(output[n], value, columns[n, k], retain_graph=True)
            results.append(grad[n] if setting.batched(name, index) else grad)
    return torch.stack(results).unflatten(0, columns.shape[:2])


def _hessian(setting: Setting, names: list[str], scalar: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Brute force: the Hessian of each sample's scalar in that sample's slices of the named inputs, joined."""
    matrices = []
    inputs = setting.inputs(names)
    for n in range(SAMPLES):
        wholes = [setting.tensor(*at) for at in inputs]
        parts = [whole[n] if setting.batched(*at) else whole for at, whole in zip(inputs, wholes, strict=True)]
        sizes = [part.numel() for part in parts]

        def function(flat: Tensor, n: int = n, parts: list[Tensor] = parts, sizes: list[int] = sizes,
                     wholes: list[Tensor] = wholes) -> Tensor:
            changed: dict[str, Any] = {}
            for (name, i), whole, part, piece in zip(inputs, wholes, parts, flat.split(sizes), strict=True):
                value = piece.view_as(part)
                if setting.batched(name, i):
                    value = torch.cat([whole[:n], value[None], whole[n + 1 :]])
                if i is None:
                    changed[name] = value
                else:
                    changed.setdefault(name, list(setting.arguments[name]))[i] = value
            return scalar(setting.reference(changed), n)

        flat = torch.cat([part.flatten() for part in parts])
        try:
            matrices.append(torch.autograd.functional.hessian(function, flat))
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
            matrices.append(_differences(function, flat))
    return torch.stack(matrices)


def _differences(function: Callable[[Tensor], Tensor], flat: Tensor) -> Tensor:
    """Differences of gradients, for operations that torch differentiates once only (they are piecewise linear)."""
    steps = 1e-6 * torch.eye(len(flat), dtype=flat.dtype)
    gradient = torch.func.grad(function)
    return torch.stack([(gradient(flat + step) - gradient(flat - step)) / 2e-6 for step in steps])


def _residual_matrix(residual: Residual, op: Op, names: list[str], gradient: Tensor | None, size: int) -> Tensor:
    """The rule's residual as dense matrices [N, h, h]."""
    given = () if gradient is None else (gradient,)
    if isinstance(residual, Zero):
        return torch.zeros(SAMPLES, size, size, dtype=torch.float64)
    if isinstance(residual, Diagonal):
        diagonal = residual.diagonal(op, *given)
        assert diagonal.shape[1:] == torch.Size(op.shape(names[0])), "the diagonal must have its input's shape"
        return torch.diag_embed(diagonal.reshape(SAMPLES, -1))
    assert isinstance(residual, Factor)
    columns, signs = residual.factor(op, *given)
    joined = torch.cat([_flat(columns[name]) for name in names], dim=-1)
    assert joined.shape[1] == residual.count(op), f"{joined.shape[1]} columns, {residual.count(op)} announced"
    weight = torch.ones(joined.shape[:2], dtype=joined.dtype) if signs is None else signs
    return torch.einsum("nka,nk,nkb->nab", joined, weight, joined)


def _flat(columns: Tensor) -> Tensor:
    """[N, K, *z] -> [N, K, z]."""
    return columns.reshape(*columns.shape[:2], -1)


def _close(found: Tensor, expected: Tensor, where: str) -> None:
    assert found.shape == expected.shape, f"{where}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    assert found.dtype == expected.dtype, f"{where}: dtype {found.dtype}, not {expected.dtype}"
    error = (found - expected).abs().max().item() if found.numel() else 0.0
    scale = 1 + (expected.abs().max().item() if expected.numel() else 0.0)
    assert error <= 1e-9 * scale, f"{where}: off by {error:.2e}"
