"""A parameter that is a value like any other (see `parameter_values`) where a rule knows it as a parameter only.

The rule's contraction says all: it pulls columns back to the parameter, and, the operation being linear in it, the
residual between the parameter and an input is what is left of the contraction when the input is a unit vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.rule.idioms import spread_by_index
from hbpcompiler.rule.op import Op
from hbpcompiler.rule.ranges import above_zero, lengths
from hbpcompiler.rule.residual import Factor
from hbpcompiler.rule.rule import Rule
from hbpcompiler.rule.structure import Structure


def columns_to(rule: Rule, op: Op, slot: str) -> Callable[[Any], Any]:
    """The transposed Jacobian towards a tensor argument ("tensors.1" for one of a list)."""
    name, _, position = slot.partition(".")
    if name in rule.jac_t:
        function = rule.jac_t[name]
        return lambda columns: function(op, columns, int(position)) if position else function(op, columns)
    contraction = rule.params(op)[slot]

    def contracted(columns: Any) -> Any:
        left, _, result = contraction.letters
        pulled = contraction.columns(op, columns)
        if contraction.index is not None:
            return spread_by_index(pulled, contraction.index(op), op.shape(slot)[0])
        if contraction.operand is not None:
            pulled = torch.einsum(contraction.equation, pulled, contraction.operand(op))
        elif left != result:
            pulled = torch.einsum(contraction.equation, pulled)
        return pulled.reshape(columns.shape[0], -1, *op.shape(slot))

    return contracted


def parameters_met(rule: Rule, op: Op) -> list[str]:
    """Arguments that carry derivatives and that the rule knows as parameters which meet an operand."""
    return [slot for slot, contraction in rule.params(op).items()
            if slot.split(".")[0] not in rule.jac_t and op.varies(slot) and contraction.operand is not None]


def inputs_met(rule: Rule, op: Op) -> list[str]:
    """The other arguments that carry derivatives: the operand is made of them."""
    return [name for name in rule.jac_t if op.varies(name)]


def cross_block_missing(rule: Rule, op: Op) -> bool:
    """Whether it has blocks between a parameter and an input that `cross_block` cannot make: the operand is not known
    to be linear in one input."""
    return rule.structure_of(op) is not Structure.CONSTANT or len(inputs_met(rule, op)) != 1


def cross_block(rule: Rule, op: Op, slot: str) -> Factor:
    """The residual between the parameter and the input: for each coordinate j of the input, the block's row c_j.

    e_j c_j^T + c_j e_j^T is half of (a e_j + c_j / a)(...)^T - (a e_j - c_j / a)(...)^T for any a; a = sqrt|c_j| keeps
    both parts of one size, in units of the input's own: the parameter's derivative is 1 where the input's is as large
    as its numbers are.
    """
    (name,) = inputs_met(rule, op)
    size = math.prod(op.shape(name))

    def factor(op: Op, gradient: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        contraction = rule.params(op)[slot]
        assert contraction.operand is not None
        unit = torch.eye(size, dtype=gradient.dtype, device=gradient.device).reshape(size, *op.shape(name))
        operand = contraction.operand(op.with_tensor(name, unit))
        left, right, result = contraction.letters
        equation = f"{left.replace('k', '')},{right.replace('n', 'k')}->{result}"
        columns = contraction.columns(op, gradient.unsqueeze(1)).squeeze(1)
        rows = torch.einsum(equation, columns, operand).flatten(2)
        length = above_zero(lengths(rows).squeeze(-1) / _own_sizes(op, name))
        own = torch.diag_embed((length / 2).sqrt()).reshape(-1, size, *op.shape(name))
        met = (rows / (2 * length).sqrt().unsqueeze(-1)).reshape(-1, size, *op.shape(slot))
        plus = torch.ones_like(length)
        return ({name: torch.cat([own, own], 1), slot: torch.cat([met, -met], 1)}, torch.cat([plus, -plus], 1))

    return Factor(lambda op: 2 * size, factor, own={})


def _own_sizes(op: Op, name: str) -> Any:
    """Of the input's numbers, [N, entries]: the mean along their last axis, or 1 where that is 0."""
    if op.one_by_one or not op.shape(name):
        return 1
    size = getattr(op, name).abs().mean(-1, True)
    return torch.where(size > 0, size, 1.0).expand(-1, *op.shape(name)).flatten(1)
