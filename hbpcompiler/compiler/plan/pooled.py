"""Columns that max-pooling has sent to few positions end at a convolution's parameters as they were before: pooled.

Behind a max-pool every channel of a column is zero but at one position for each output of the pool. An elementwise
operation in between (ReLU before the pool) scales these entries and moves none. So the contraction needs, per channel,
only the operand at those positions: "nkop,npi->nkoi" becomes "nkop,nopi->nkoi" with p over the pool's outputs. The
usual routes close it, and it is taken where it costs less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import number
from hbpcompiler.compiler.plan.steps import Close, Pull, Step
from hbpcompiler.compiler.routes import (
    COLUMNS,
    Choice,
    Site,
    choose,
    seconds,
)
from hbpcompiler.compiler.routes.site import SQUARES
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.quantities import GRADIENT
from hbpcompiler.rule import Contraction, Op, Rule, Tensor
from hbpcompiler.rule.idioms import rows_at
from hbpcompiler.rule.registry import AnyRule

Place = tuple[str, str]
"""Names of a value and of a piece there."""


@dataclass(frozen=True)
class Scattered:
    """What is known of a piece at a value: its channels have few entries, sent there by a pool."""

    pool: Operation
    way: tuple[Place, ...]
    """from the pool's input to here."""
    channels: int
    entries: int


def with_pooled_columns(steps: Sequence[Step], rules: Mapping[str, AnyRule],
                        static: Callable[[Operation], Op]) -> tuple[list[Step], dict[Place, Operation]]:
    """The steps with closings at pooled positions where these cost less, and the pool of each place on their way."""
    known: dict[Place, Scattered | None] = {}
    used: dict[Place, Operation] = {}
    result: list[Step] = []
    for step in steps:
        if isinstance(step, Pull) and step.piece.form == COLUMNS and step.piece.stream != GRADIENT:
            place = (step.operation.tensors[step.slot].name, step.piece.name)
            before = known.get((step.operation.name, step.piece.name))
            known[place] = None if place in known else _after(step, rules[step.operation.name], static, before, place)
        found = known.get((step.operation.name, step.piece.name)) if isinstance(step, Close) and step.piece else None
        if isinstance(step, Close) and found is not None:
            parts = _closings(step, found, static)
            if any(part.pooled for part in parts):
                used |= dict.fromkeys(found.way, found.pool)
            result += parts
        else:
            result.append(step)
    return result, used


def _after(step: Pull, rule: AnyRule, static: Callable[[Operation], Op], before: Scattered | None,
           place: Place) -> Scattered | None:
    op = static(step.operation)
    if not isinstance(rule, Rule):
        return None
    if (index := rule.selected(op)) is not None:
        return Scattered(step.operation, (place,), int(index.shape[1]), int(index.shape[2]))
    if before is not None and rule.elementwise_in(op):
        return replace(before, way=(*before.way, place))
    return None


def _closings(step: Close, found: Scattered, static: Callable[[Operation], Op]) -> list[Close]:
    """The closing in at most two parts: what goes by pooled columns, and the rest."""
    kinds = step.kinds
    squares = kinds & SQUARES
    contraction = _pooled_contraction(step, found, static(step.operation))
    if not squares or contraction is None:
        return [step]
    sizes = dict(step.site.sizes) | {"p": found.entries}
    resources = step.site.resources
    blas = replace(resources.machine, linear_per_second=0.0)  # which makes all products of small matrices
    site = step.site.without_kernels(equation=contraction.equation, sizes=tuple(sorted(sizes.items())), formed=True,
                                     resources=replace(resources, machine=blas))
    choices, others = choose(site, squares), choose(step.site, squares)
    ours, theirs = seconds(site, choices) + _surcharge(site, choices), seconds(step.site, others)
    if decided("not pooled", lambda: ours >= resources.limits.pooled_time * theirs):
        return [step]
    pooled = replace(step, site=site, contraction=contraction, choices=choices, pooled=True)
    rest = kinds - squares
    return [pooled] + ([replace(step, choices=choose(step.site, rest))] if rest else [])


def _surcharge(site: Site, choices: Sequence[Choice]) -> float:
    """Seconds that the routes' own costs leave out: small products, and gathering the operand."""
    machine, limits = site.resources.machine, site.resources.limits
    batch = site.samples or limits.typical_batch
    adds = sum(number(choice.cost.multiply_adds, batch) for choice in choices)
    arithmetic = (limits.pooled_slowdown - 1) * adds / machine.products_per_second
    gathered = 2 * batch * site.itemsize * site.size(site.letters[1]) / machine.bytes_per_second
    return arithmetic + gathered


def _is_flat(contraction: Contraction, op: Op) -> bool:
    """Whether the contraction's columns are the output's entries in their order: tried on numbered entries."""
    channels, *positions = op.shape("output")
    numbers = torch.arange(float(channels * math.prod(positions)), device="cpu").reshape(1, 1, channels, *positions)
    try:
        return torch.equal(contraction.columns(op, numbers), numbers.reshape(1, 1, channels, -1))
    except (AttributeError, RuntimeError):  # it reads tensors, of which only shapes are known here
        return False


def _pooled_contraction(step: Close, found: Scattered, op: Op) -> Contraction | None:
    """The contraction at pooled positions, if this one's positions are the output's axes behind its channels."""
    left, right, _ = step.site.letters
    own = left.replace("n", "").replace("k", "").replace("p", "")
    channels, *positions = op.shape("output")
    fits = (left == f"nk{own}p" and len(own) == 1 and channels == found.channels
            and math.prod(positions) == step.site.size("p"))
    if not fits or not _is_flat(step.contraction, op):
        return None
    if step.contraction.operand is None:
        return Contraction(f"nk{own}p->nk{own}")
    features = right.replace("n", "").replace("p", "")
    if len(features) != 1 or features == own:
        return None
    dense, flipped = step.contraction.operand, right == f"n{features}p"

    def operand(op: Op) -> Tensor:
        """[n, o, p, i]: for each channel the operand's rows at its positions."""
        rows = dense(op)
        return rows_at(rows.mT if flipped else rows, op.pooled_index)

    return Contraction(f"nk{own}p,n{own}p{features}->nk{step.site.theta}", operand=operand)
