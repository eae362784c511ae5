"""The whole contract of a rule in one function: `check_rule(rule)` compares it with autograd in float64.

A user's rule is tested by the same two lines as ours:

    from hbpcompiler.testing import check_rule
    check_rule(my_rule)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hbpcompiler.rule import NO_DERIVATIVE, Case, Factor, LossRule, Op, Pieces, Rule, Structure
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.rule.functions import R
from hbpcompiler.rule.position_columns import positionwise, some_positionwise
from hbpcompiler.rule.unchanged import changing_nothing
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.attributes import further_cases
from hbpcompiler.testing.brute_force import hessian, moved, pull_back
from hbpcompiler.testing.compare import close, flat, in_chunks, residual_matrix
from hbpcompiler.testing.drawn import drawn_matrix
from hbpcompiler.testing.expression import check_expression
from hbpcompiler.testing.extremes import check_extremes
from hbpcompiler.testing.farther import check_farther, check_loss_farther
from hbpcompiler.testing.larger import check_larger
from hbpcompiler.testing.parameters import check_parameter
from hbpcompiler.testing.positions import check_positions
from hbpcompiler.testing.preconditions import check_drawn, check_preconditions, check_way_back, saying_where
from hbpcompiler.testing.sampled import check_sampled
from hbpcompiler.testing.setting import SAMPLES, Setting
from hbpcompiler.testing.single import check_single
from hbpcompiler.testing.structure import check_structure, check_window
from hbpcompiler.testing.written import check_decomposition

COLUMNS = 2
SLOPES = {"increasing": 1, "decreasing": -1}


def check_rule(rule: Rule | LossRule | Decomposition) -> None:
    """Raise AssertionError unless every case of the rule keeps the contract.

    Value, shapes, adjointness, transposed Jacobians, parameter contractions, residual against double backward, the
    declared structure and window, the order, the expression by which operations are joined; value, columns back and
    residual with zeros among values and gradients, for one sample, column and feature, of tensors that are not
    contiguous, in float32, and at larger values too; and, for elementwise operations, torch's derivatives at zero and
    up to +-1e4, finite and accurate in float32 and bfloat16. Attributes that the cases leave at their defaults are
    tried at another value, too. Of a Decomposition: the value of what the operation is written in, and its first and
    second derivatives by autograd.
    """
    check_preconditions(rule)
    with torch.device("cpu"):  # where cases and their makers' tensors are, whatever the default device
        for operation in rule.operations:
            if isinstance(rule, Decomposition):
                for case in rule.cases:
                    check_decomposition(rule, operation, case)
                continue
            for case in (*rule.cases, *further_cases(rule, operation)):
                if isinstance(rule, LossRule):
                    check_loss_case(rule, operation, case)
                else:
                    check_case(rule, operation, case)
            if isinstance(rule, Rule) and rule.structure is Structure.ELEMENTWISE:
                for case in rule.cases:
                    check_extremes(rule, operation, case)


def _forward(given: R, operation: str, case: Case) -> tuple[R, Setting, Op, str]:
    """The rule, watched; one case's arguments, its operation with the value compared, its name in a failure."""
    seed_cpu(0)
    where = f"{operation} {dict(case.shapes)} {dict(case.attributes)}"
    rule = changing_nothing(saying_where(given, where, case), where, AssertionError)
    setting = Setting(rule, operation, case)
    check_drawn(setting, isinstance(rule, LossRule), where)
    op = setting.op()
    assert rule.refuse(op) is None, f"{where}: the rule refuses its own case"
    close(op.output, setting.reference(), f"{where}: forward")
    return rule, setting, op, where


def check_case(rule: Rule, operation: str, case: Case) -> None:
    """One case of an operation's rule."""
    rule, setting, op, where = _forward(rule, operation, case)
    check_way_back(rule, op, where)
    if rule.forward is not None:
        close(setting.of_constants(), setting.reference(), f"{where}: forward of constants, without a sample axis")
    columns = torch.randn(SAMPLES, COLUMNS, *op.shape("output"), dtype=torch.float64)
    for name, i in setting.inputs(setting.active()):
        _check_input(rule, setting, op, name, i, columns, where)
    if rule.jac_t is NO_DERIVATIVE:
        _check_constant(setting, columns, where)
    for name in rule.params(op):
        if name in case.shapes:
            check_parameter(rule, setting, op, name, columns, where)
    check_structure(rule, setting, op, where)
    check_window(rule, setting, op, where)
    check_expression(rule, setting, op, where)
    _check_order(rule, setting, columns, where)
    _check_residual(rule, setting, op, columns[:, 0], where)
    if rule.cases and case is rule.cases[0]:
        check_larger(rule, operation, case, where)
    if rule.structure is not Structure.ELEMENTWISE:  # of which `check_extremes` says more
        check_single(rule, operation, case, where)
    check_farther(rule, operation, case, where)


def _check_input(rule: Rule, setting: Setting, op: Op, name: str, i: int | None, columns: Tensor, where: str) -> None:
    """Columns at one input: as autograd has them, and adjoint to the derivative in a direction."""
    result = rule.jac_t[name](op, columns, *([] if i is None else [i]))
    close(result, pull_back(setting, name, columns, i), f"{where}: jac_t of {name}")
    if i is None and name in rule.backward:
        close(rule.backward[name](op, columns[:, 0]), result[:, 0], f"{where}: backward of {name}")
        alone = setting.op(single=True)
        close(alone.output, op.output, f"{where}: forward for one column")
        close(rule.backward[name](alone, columns[:, 0]), result[:, 0], f"{where}: backward of {name}, one column")
    value = setting.tensor(name, i)
    direction = torch.randn_like(value)
    change = moved(setting, name, i, direction)
    spread = direction.unsqueeze(1) if setting.batched(name, i) else direction
    close(flat(result * spread).sum(-1), flat(columns * change.unsqueeze(1)).sum(-1), f"{where}: adjointness of {name}")


def _check_constant(setting: Setting, columns: Tensor, where: str) -> None:
    """No input has a derivative in torch either."""
    for name, i in setting.inputs(list(setting.case.shapes)):
        if setting.tensor(name, i).is_floating_point():
            try:
                found = pull_back(setting, name, columns, i)
            except RuntimeError as error:
                if "no autograd formula" in str(error):  # a custom operation's: torch has no derivative of it
                    continue
                raise
            close(torch.zeros_like(found), found, f"{where}: a derivative with respect to {name}, where there is none")


def _check_order(rule: Rule, setting: Setting, columns: Tensor, where: str) -> None:
    for order, sign in SLOPES.items():
        if order in rule.order:
            for name, i in setting.inputs(setting.active()):
                assert (sign * pull_back(setting, name, columns.abs(), i) >= 0).all(), f"{where}: not {order} in {name}"


def _check_residual(rule: Rule, setting: Setting, op: Op, gradient: Tensor, where: str) -> None:
    """The residual against double backward; of a convex operation it is positive where the gradient is, of a
    concave one where that is negative."""
    names = setting.active()
    if not names or isinstance(rule.residual_of(op), Pieces):
        return
    active = [name if i is None else f"{name}.{i}" for name, i in setting.inputs(names)]
    expected = hessian(setting, names, lambda output, n: (output[n] * gradient[n]).sum())
    found = residual_matrix(rule.residual_of(op), op, active, gradient, expected.shape[-1], where)
    close(found, expected, f"{where}: residual")
    residual = rule.residual_of(op)
    if isinstance(residual, Factor) and residual.some is not None:
        found = residual_matrix(in_chunks(residual), op, active, gradient, expected.shape[-1], where)
        close(found, expected, f"{where}: residual, some columns at a time")
    if isinstance(residual, Factor) and residual.drawn is not None:
        close(drawn_matrix(residual, op, active, gradient, where), expected, f"{where}: residual, drawn")
    if isinstance(residual, Factor) and residual.own is not None:
        sizes = [math.prod(op.shape(name)) for name in active]
        for name, rows in zip(active, expected.split(sizes, 1), strict=True):
            own = rows.split(sizes, 2)[active.index(name)]
            stated = residual.own.get(name)
            diagonal = own.new_zeros(own.shape[:2]) if stated is None else stated(op, gradient).reshape(len(own), -1)
            close(torch.diag_embed(diagonal), own, f"{where}: the residual's own block of {name}")
    for order, sign in (("convex", 1), ("concave", -1)):
        if order in rule.order:
            positive = residual_matrix(rule.residual_of(op), op, active, sign * gradient.abs(), expected.shape[-1],
                                       where)
            assert torch.linalg.eigvalsh(positive).min() >= -1e-9, f"{where}: not {order}"


def check_by_position(rule: LossRule, op: Op, where: str) -> None:
    """A loss's columns of each position alone, which make all of its columns, some at a time too."""
    residual = rule.residual_of(op)
    if not isinstance(residual, Factor) or residual.by_position is None:
        return
    positions, numbers = op.shape(rule.input)[1:], torch.arange(residual.count(op))
    expected = residual.factor(op)[0][rule.input]
    close(positionwise(residual.by_position(op), positions), expected, f"{where}: columns by position")
    if positions:
        found = some_positionwise(residual.by_position(op), positions, numbers.flip(0))
        close(found.flip(1), expected, f"{where}: some columns by position")


def _check_losses(rule: LossRule, setting: Setting, where: str) -> None:
    """l_n [N]: their mean or sum is the loss, and each one's gradient is that of its sample alone."""
    value = setting.arguments[rule.input].clone().requires_grad_()
    op = setting.op().with_tensor(rule.input, value)
    assert rule.each is not None
    losses = rule.each(op)
    assert losses.shape == (SAMPLES,), f"{where}: l_n has shape {list(losses.shape)}"
    total = losses.mean() if rule.reduction(op) == "mean" else losses.sum()
    close(total, setting.reference(), f"{where}: l_n")
    for n, loss in enumerate(losses):
        (found,) = torch.autograd.grad(loss, value, retain_graph=True)
        expected = torch.zeros_like(found)
        expected[n] = rule.gradient(setting.op())[n]
        close(found, expected, f"{where}: gradient of l_{n}")


def _check_terms(rule: LossRule, setting: Setting, op: Op, where: str) -> None:
    """How many terms the mean goes over: a batch's loss is that of its parts, each by its terms."""
    total, counted = 0.0, 0.0
    for rows in (slice(0, 1), slice(1, SAMPLES)):
        part = {name: setting.arguments[name][rows] for name in setting.case.shapes if setting.batched(name)}
        if rule.terms is None:
            terms = rows.stop - rows.start
        elif "target" in part and (found := rule.terms(op, part["target"])) is not None:
            terms = found
        else:
            return  # it depends on values that a target does not say: of class weights
        counted += terms
        total += terms * float(setting.reference(part)) if terms else 0.0
    if counted:
        close(torch.tensor(total / counted, dtype=torch.float64), setting.reference(), f"{where}: terms")


def _check_reduction(rule: LossRule, op: Op, where: str) -> None:
    """A mean or a sum; of a sum the loss of each sample is what it is alone."""
    reduction = rule.reduction(op)
    assert reduction in ("mean", "sum"), (
        f"{where}: reduction says {reduction!r}; of an operation that makes one number it is 'mean' or 'sum'")
    if reduction == "sum":
        alone = op.bound_again(lambda tensor, sampled: tensor[:1] if sampled else tensor)
        words = f"{where}: reduction says 'sum', and in a batch of one alone"
        close(rule.gradient(alone), rule.gradient(op)[:1], f"{words} the gradient of l_n is another")
        if rule.each is not None:
            close(rule.each(alone), rule.each(op)[:1], f"{words} l_n is another")


def check_loss_case(rule: LossRule, operation: str, case: Case) -> None:
    """One case of a loss: value, per-sample gradient, terms, Hessian and the sampled Hessian's expectation."""
    rule, setting, op, where = _forward(rule, operation, case)
    if "target" in case.shapes:
        assert rule.check(op, setting.arguments["target"]) is None, f"{where}: the rule rejects its own case's target"
    _check_reduction(rule, op, where)
    scale = SAMPLES if rule.reduction(op) == "mean" else 1
    value = setting.arguments[rule.input].clone().requires_grad_()
    (expected,) = torch.autograd.grad(setting.reference({rule.input: value}), value)
    words = f"gradient of l_n, of which the loss is the {rule.reduction(op)}"
    close(rule.gradient(op), scale * expected, f"{where}: {words}")
    check_by_position(rule, op, where)
    if rule.each is not None:
        _check_losses(rule, setting, where)
    if rule.reduction(op) == "mean":
        _check_terms(rule, setting, op, where)
    for order, sign in SLOPES.items():
        assert order not in rule.order or (sign * expected >= 0).all(), f"{where}: not {order}"
    expected_hessian = hessian(setting, [rule.input], lambda output, n: scale * output)
    found = residual_matrix(rule.residual_of(op), op, [rule.input], None, expected_hessian.shape[-1], where)
    close(found, expected_hessian, f"{where}: Hessian")
    check_sampled(rule, op, expected_hessian, where)
    check_loss_farther(rule, operation, case, where)
    check_positions(rule, operation, case, where)
