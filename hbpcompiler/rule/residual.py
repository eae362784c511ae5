"""The kinds of residual: zero, diagonal, a factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from hbpcompiler.rule.fields import check_by_argument, check_functions
from hbpcompiler.rule.op import Op


@dataclass(frozen=True)
class Zero:
    """The operation is (piecewise) linear in its differentiated inputs: stated, never assumed."""


@dataclass(frozen=True)
class Pieces(Zero):
    """The rule is about first derivatives alone. Where curvature inside the model is asked for, or the operation is
    part of a loss, it is taken apart beforehand, by a `Decomposition` beside the rule, and is itself not there."""


@dataclass(frozen=True)
class Diagonal:
    """The residual is diagonal in the one differentiated input.

    `diagonal(op, gradient [N, *out]) -> [N, *in]` (losses: `diagonal(op) -> [N, *in]`).
    """

    diagonal: Callable[..., Tensor]

    def __post_init__(self) -> None:
        check_functions("Diagonal", self, ["diagonal"])


Noise = Callable[..., Tensor]
"""`noise(*shape)`: random signs, [N, M, *shape], all independent."""


@dataclass(frozen=True)
class Factor:
    """The residual is F diag(sigma) F^T, the same columns at every differentiated input of the operation.

    `count(op)` is the number K of columns. `factor(op, gradient [N, *out]) -> ({input: [N, K, *in]}, signs)` with
    signs [N, K] in {-1, +1}, or None if all are +1 (losses: `factor(op)`).
    """

    count: Callable[[Op], int]
    factor: Callable[..., tuple[Mapping[str, Tensor], Tensor | None]]
    some: Callable[[Op, Tensor, Tensor], tuple[Mapping[str, Tensor], Tensor | None]] | None = None
    """optional: `some(op, gradient, numbers [k])` makes the columns with these numbers, 0 to K - 1, alone: where all
    would be too many they are made, and walked, so many at a time. The columns may be others than `factor`'s with the
    same F diag(sigma) F^T."""
    drawn: Callable[[Op, Tensor, Noise], Mapping[str, Tensor]] | None = None
    """optional: `drawn(op, gradient, noise) -> {input: [N, 2 M, *in]}`, what sampled quantities have in place of all
    columns: M sums of those with sigma = +1, each times a random sign, and then M sums of those with sigma = -1. Both
    are linear in the noise, so that their second moments are those columns' own; the columns themselves are not made,
    and may be others than `factor`'s. One of +1 may share its sign with one of -1: only sums of a kind are squared."""

    by_position: Callable[[Op], Tensor] | None = None
    """optional, of a loss whose one input, [C, *d], has curvature at each position by itself: `by_position(op) ->
    [N, *d, k, C]`, the columns of each alone. Column j P + p of `factor` is column j at position p, and 0 elsewhere:
    where all are too many they are made of these, so many at a time."""

    own: Mapping[str, Callable[[Op, Tensor], Tensor]] | None = None
    """optional, of several inputs: the blocks of each with itself, where they are diagonal: `{input: own(op, gradient)
    -> [N, *in]}`; {} if there are blocks between different inputs alone, as of a product. What only one of the inputs
    depends on has its part of these, and no columns, which would cancel there but for rounding."""

    edge: Callable[[Op], Tensor] | None = None
    """optional: where, [N, *out], the result has no slope and 0 in its place, as |x| at 0. A curvature that arrives
    there has no way on that is known: what comes out is NaN, as torch has it."""

    def __post_init__(self) -> None:
        check_functions("Factor", self, ["count", "factor"], ["some", "drawn", "by_position", "edge"])
        if self.own is not None:
            check_by_argument("Factor", self, ["own"])


Residual = Zero | Diagonal | Factor


ZERO = Zero()
PIECES = Pieces()
