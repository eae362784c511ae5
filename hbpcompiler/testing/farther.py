"""A rule elsewhere than the rest of the contract draws: what is right near zero may be wrong at it and beyond, and what
is right for some samples, columns and features wrong for one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hbpcompiler.rule import Case, Factor, LossRule, Op, Pieces, Rule
from hbpcompiler.rule.decomposition import Decomposition
from hbpcompiler.system.seeded import seed_cpu
from hbpcompiler.testing.brute_force import hessian, pull_back
from hbpcompiler.testing.compare import close, residual_matrix
from hbpcompiler.testing.parameters import check_parameter
from hbpcompiler.testing.sampled import check_sampled
from hbpcompiler.testing.setting import Setting, strided, with_zeros


@dataclass(frozen=True)
class Place:
    """Numbers that a rule is asked at."""

    words: str
    samples: int = 2
    columns: int = 1
    scale: float = 1.0
    """times the standard normal"""
    zeros: bool = False
    short: bool = False
    """Whether all lengths are 1."""
    strided: bool = False
    """Whether tensors are not contiguous."""
    flat: bool = False
    """Whether columns are 0 in part, as gradients are behind every ReLU."""


PLACES = (Place("of one sample", samples=1), Place("of one feature", short=True),
          Place("of gradients that are 0 in part", flat=True),
          Place("of tensors that are not contiguous", strided=True), Place("with zeros among the values", zeros=True),
          Place("at values up to 24", scale=8.0), Place("at values up to 1500", samples=1, scale=500.0))
OF_FURTHER_CASES = (Place("at zeros and values up to 24", scale=8.0, zeros=True),)
"""Behind a rule's first two cases: what is said of lengths and samples is the same for all attributes."""


def at_places(rule: Rule | LossRule | Decomposition, operation: str, case: Case) -> Iterator[tuple[Setting, Place]]:
    """The case at each place where torch's operation takes what is drawn."""
    given = None if isinstance(rule, Decomposition) else rule
    usual = Setting(given, operation, case).reference().dim()
    first = any(case is one for one in rule.cases[:2])
    for place in PLACES if first else OF_FURTHER_CASES:
        if (place.zeros or place.scale != 1) and set(case.shapes) <= {*case.make}:
            continue  # its makers know what values the operation takes
        here = case
        if place.short:
            here = replace(case, shapes={name: _short(shape) for name, shape in case.shapes.items()})
        seed_cpu(0)
        try:
            setting = Setting(given, operation, here, scale=place.scale, samples=place.samples, zeros=place.zeros,
                              strided=place.strided)
            other = setting.reference().dim() != usual
        except (RuntimeError, IndexError, ValueError):  # a length among its attributes, or a domain of its values
            continue
        if not other:  # torch.squeeze, which takes an axis of one sample away
            yield setting, place


def _settings(rule: Rule | LossRule, operation: str, case: Case,
              where: str) -> Iterator[tuple[Setting, Op, Place, str]]:
    """The case at each place where the rule, too, takes what is drawn."""
    for setting, place in at_places(rule, operation, case):
        op = setting.op()
        if rule.refuse(op) is None:
            yield setting, op, place, f"{where}, {place.words}"


def _short(shape: object) -> object:
    if isinstance(shape, list):
        return [_short(one) for one in shape]
    assert isinstance(shape, tuple)
    return (1,) * len(shape)


def close_where_finite(found: Tensor, expected: Tensor, where: str) -> None:
    """Where torch has a finite number."""
    if isinstance(found, Tensor) and found.shape == expected.shape and expected.is_floating_point():
        there = expected.isfinite()
        found, expected = torch.where(there, found, 0.0), torch.where(there, expected, 0.0)
    close(found, expected, where)


def check_farther(rule: Rule, operation: str, case: Case, where: str) -> None:
    """Value, columns back, contractions and residual at other places, against torch's."""
    for setting, op, place, at in _settings(rule, operation, case, where):
        close_where_finite(op.output, setting.reference(), f"{at}: forward")
        columns = torch.randn(place.samples, place.columns, *op.shape("output"), dtype=torch.float64)
        columns = with_zeros(columns) if place.flat else strided(columns) if place.strided else columns
        for name, i in setting.inputs(setting.active()):
            found = rule.jac_t[name](op, columns, *([] if i is None else [i]))
            close_where_finite(found, pull_back(setting, name, columns, i), f"{at}: jac_t of {name}")
            if i is None and name in rule.backward:
                close_where_finite(rule.backward[name](op, columns[:, 0]), found[:, 0], f"{at}: backward of {name}")
        if place.scale == 1:
            for name in rule.params(op):
                if name in case.shapes:
                    check_parameter(rule, setting, op, name, columns, at)
        _check_residual(rule, setting, op, place, columns[:, 0], at)


def _check_residual(rule: Rule, setting: Setting, op: Op, place: Place, gradient: Tensor, where: str) -> None:
    """Where torch's second derivatives are finite, and those of one another (of a power to zero they are not)."""
    names, residual = setting.active(), rule.residual_of(op)
    if not names or isinstance(residual, Pieces) or (isinstance(residual, Factor) and place.scale != 1):
        return
    active = [name if i is None else f"{name}.{i}" for name, i in setting.inputs(names)]
    second = hessian(setting, names, lambda output, n: (output[n] * gradient[n]).sum(), across_kinks=not place.zeros)
    second = torch.where((second - second.mT).abs() <= 1e-9 * (1 + second.abs()), second, math.nan)
    if isinstance(residual, Factor):  # a column that is infinite is so at all of its sample's entries
        second = torch.where(second.isfinite().all(-1).all(-1)[:, None, None], second, math.nan)
    found = residual_matrix(residual, op, active, gradient, second.shape[-1], where, setting.samples)
    close_where_finite(found, second, f"{where}: residual")


def check_loss_farther(rule: LossRule, operation: str, case: Case, where: str) -> None:
    """A loss, its gradient and its Hessian at other places, against torch's."""
    for setting, op, place, at in _settings(rule, operation, case, where):
        if "target" in case.shapes and rule.check(op, setting.arguments["target"]) is not None:
            continue
        scale = place.samples if rule.reduction(op) == "mean" else 1
        close_where_finite(op.output, setting.reference(), f"{at}: forward")
        value = setting.arguments[rule.input].clone(memory_format=torch.contiguous_format).requires_grad_()
        (expected,) = torch.autograd.grad(setting.reference({rule.input: value}), value)
        close_where_finite(rule.gradient(op), scale * expected, f"{at}: gradient")
        second = scale * hessian(setting, [rule.input], lambda output, _: output)
        found = residual_matrix(rule.residual_of(op), op, [rule.input], None, second.shape[-1], at, place.samples)
        close_where_finite(found, second, f"{at}: Hessian")
        if place.scale == 1 and second.isfinite().all():
            if rule.each is not None:
                losses = rule.each(op)
                assert losses.shape == (place.samples,), f"{at}: l_n has shape {list(losses.shape)}"
                total = losses.mean() if rule.reduction(op) == "mean" else losses.sum()
                close_where_finite(total, setting.reference(), f"{at}: l_n")
            if place.samples == 1:
                check_sampled(rule, op, second, at)
