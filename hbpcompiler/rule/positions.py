"""A rule for [N, *z] made one for [N, p, *z]: the operation on each of p parts of a sample (frames, windows, patches).

The parts are handed to the rule as samples, [N p, *z], and what it returns is put together again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule.contraction import Contraction
from hbpcompiler.rule.helpers import computed
from hbpcompiler.rule.op import Op
from hbpcompiler.rule.residual import Diagonal, Factor, Noise, Residual, Zero
from hbpcompiler.rule.rule import Backward, JacT, Rule


def parts_of(op: Op) -> int:
    """p."""
    return op.shape("output")[0]


def of_parts(op: Op) -> Op:
    """The operation as the rule for [N, *z] sees it: parts in place of samples."""
    return op.of_parts(lambda tensor: tensor.flatten(0, 1))


def together(op: Op, parts: Tensor) -> Tensor:
    """[N p, *z] -> [N, p, *z]."""
    return parts.unflatten(0, (-1, parts_of(op)))


def folded(columns: Tensor) -> Tensor:
    """Columns [N, K, p, *z] -> [N p, K, *z]."""
    return columns.transpose(1, 2).flatten(0, 1)


def over_positions(rule: Rule) -> Rule:
    """The rule of the same operation on [N, p, *z]. Arguments without samples are the same for all parts."""

    def forward(op: Op) -> Any:
        made, saved = computed(rule, of_parts(op))
        kept = {name: together(op, value) for name, value in saved.items()}
        return (together(op, made), kept) if kept else together(op, made)

    def jac_t(name: str) -> JacT:
        def pulled(op: Op, columns: Tensor) -> Tensor:
            back = together(op, rule.jac_t[name](of_parts(op), folded(columns)))
            return back.transpose(1, 2) if op.has_samples(name) else back.sum(1)

        return pulled

    def backward(name: str) -> Backward:
        def pulled(op: Op, gradient: Tensor) -> Tensor:
            back = together(op, rule.backward[name](of_parts(op), gradient.flatten(0, 1)))
            return back if op.has_samples(name) else back.sum(1)

        return pulled

    def params(op: Op) -> Mapping[str, Contraction]:
        return {slot: _contraction(contraction) for slot, contraction in rule.params(of_parts(op)).items()}

    def derivative(op: Op) -> Tensor:
        assert rule.derivative is not None
        return together(op, rule.derivative(of_parts(op)))

    return replace(
        rule,
        forward=None if rule.forward is None else forward,
        jac_t={name: jac_t(name) for name in rule.jac_t},
        backward={name: backward(name) for name in rule.backward},
        params=params,
        residual=lambda op: _residual(rule.residual_of(of_parts(op))),
        structure=lambda op: rule.structure_of(of_parts(op)),
        derivative=None if rule.derivative is None else derivative,
        window=lambda op: None,
        layout=None,
        expression=None,
        refuse=lambda op: rule.refuse(of_parts(op)),
        merged=False,
        cases=(),
    )


def _contraction(contraction: Contraction) -> Contraction:
    """The parts join the positions, or are the positions where there are none."""
    left, right, result = contraction.letters
    places = left.find("p") if "p" in left else None
    own = left.replace("p", "")
    met = right.replace("p", "")

    def joined(op: Op, parts: Tensor, place: int | None, after: int) -> Tensor:
        """[N p, ...] -> [N, ..., p times positions, ...] with that axis as number `after`."""
        whole = together(op, parts)
        if place is not None:
            whole = whole.movedim(place + 1, 2).flatten(1, 2)
        return whole if after == 1 else whole.movedim(1, after)

    def columns(op: Op, columns: Tensor) -> Tensor:
        return joined(op, contraction.columns(of_parts(op), folded(columns)), places, 2)

    def operand(op: Op) -> Tensor:
        assert contraction.operand is not None
        place = right.find("p") if "p" in right else None
        return joined(op, contraction.operand(of_parts(op)), place, 1)

    def kernel(op: Op, gradient: Tensor) -> Tensor:
        assert contraction.kernel is not None
        return contraction.kernel(of_parts(op), gradient.flatten(0, 1))

    def index(op: Op) -> Tensor:
        assert contraction.index is not None
        whole = together(op, contraction.index(of_parts(op)))
        return whole.flatten(1, 2) if "p" in right else whole

    first = f"nkp{own.removeprefix('nk')}"
    equation = f"{first},np{met.removeprefix('n')}->{result}" if right else f"{first}->{result}"
    return Contraction(
        equation, columns, None if contraction.operand is None else operand,
        None if contraction.kernel is None else kernel, index=None if contraction.index is None else index,
    )


def _residual(residual: Residual) -> Residual:
    """No part's residual meets another part."""
    if isinstance(residual, Zero):
        return residual
    if isinstance(residual, Diagonal):
        diagonal = residual.diagonal
        return Diagonal(lambda op, gradient: together(op, diagonal(of_parts(op), gradient.flatten(0, 1))))
    inner = residual

    def factor(op: Op, gradient: Tensor) -> tuple[Mapping[str, Tensor], Tensor | None]:
        found, signs = inner.factor(of_parts(op), gradient.flatten(0, 1))
        columns = {}
        for name, value in found.items():
            parts = together(op, value)
            if op.has_samples(name):
                # [N, p, K, *z] -> [N, p, K, p, *z] with zeros where the parts differ.
                parts = torch.diag_embed(parts.movedim(1, -1), dim1=1, dim2=3)
            columns[name] = parts.flatten(1, 2)
        return columns, None if signs is None else together(op, signs).flatten(1)

    def drawn(op: Op, gradient: Tensor, noise: Noise) -> Mapping[str, Tensor]:
        assert inner.drawn is not None
        found = inner.drawn(of_parts(op), gradient.flatten(0, 1), lambda *shape: folded(noise(parts_of(op), *shape)))
        parts = {name: together(op, value) for name, value in found.items()}
        return {name: value.transpose(1, 2) if op.has_samples(name) else value.sum(1) for name, value in parts.items()}

    drawn_of_parts = None if inner.drawn is None else drawn
    return Factor(lambda op: parts_of(op) * inner.count(of_parts(op)), factor, drawn=drawn_of_parts)
