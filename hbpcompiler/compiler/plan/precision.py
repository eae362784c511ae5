"""Curvature columns in a dtype of their own (`curvature_dtype`): rounded where they begin, then all that they meet.

The backward pass marks where columns begin and where they end: `rounded` and `widened`. All in between follows from
the program itself. It is run on tensors without memory, and whatever other floating tensor meets a column (a weight, a
derivative, a convolution's patches) is rounded too, where its numbers are fewest. What no column reaches is left as it
was: the forward pass, the gradient and all its quantities, and the derivatives' own arithmetic. Kernels sum in single
precision or better whatever they are given; the totals of chunk loops do so as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from hbpcompiler.compiler.plan.steps import Piece
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.meta import Mark
from hbpcompiler.compiler.routes import COLUMNS, Site, Use
from hbpcompiler.quantities import BLOCK, EIGEN, FIRST_ORDER, IN_BASES, KFRA, OUTPUT, TOTALS

PRECISE = frozenset({BLOCK, EIGEN, IN_BASES, *TOTALS})
"""Closings in the model's dtype: eigendecompositions and what is seen in eigenvectors, what the user multiplies with
later, what adds up over many parameters."""
SQUARES = 1e9
"""What sums of squares must not exceed. Squares of columns would be as far beyond float16's smallest number."""
@dataclass(frozen=True)
class Precision:
    """The dtype of curvature columns; None: the model's, and nothing is cast."""

    dtype: torch.dtype | None = None

    def concerns(self, piece: Piece | None) -> bool:
        """Whether the piece, or, for None, the operand of a Kronecker factor A, has this dtype.

        Diagonals and KFRA's matrix keep the model's: they are small.
        """
        if self.dtype is None or piece is None:
            return self.holds_squares
        return piece.form == COLUMNS and piece.stream not in FIRST_ORDER | {KFRA, OUTPUT}

    def changes(self, piece: Piece) -> bool:
        """Whether the piece has another dtype than the model's values."""
        return self.dtype is not None and self.concerns(piece)

    @property
    def holds_squares(self) -> bool:
        """Whether closings, all of them squares, may have this dtype: float16 is for columns on their way alone."""
        return self.dtype is not None and torch.finfo(self.dtype).max > SQUARES

    def of(self, piece: Piece | None, model: torch.dtype) -> torch.dtype:
        """The dtype in which a piece is closed."""
        return self.dtype if self.dtype is not None and self.holds_squares and self.concerns(piece) else model

    def rounded(self, columns: Any, piece: Piece | None) -> Any:
        """Here columns begin, if the piece has this dtype; None: the operand of A."""
        return _cast(columns, self.dtype, Mark.BEGINS) if self.dtype is not None and self.concerns(piece) else columns

    def widened(self, result: Any, dtype: torch.dtype) -> Any:
        """Here they end: a tensor, or several, in the model's dtype; None stays."""
        if self.dtype is None or result is None:
            return result
        if isinstance(result, tuple):
            return type(result)(*(self.widened(part, dtype) for part in result))
        return _cast(result, dtype, Mark.ENDS)

    def closing(self, piece: Piece | None, kinds: Iterable[str], dtype: torch.dtype, site: Site,
                use: Use) -> tuple[Site, Use]:
        """What a route is given for these closings of a piece, at a parameter of this dtype."""
        if not self.concerns(piece) or (self.holds_squares and not PRECISE.intersection(kinds)):
            return site, use
        stream, signs = self.widened(use.stream, dtype), self.widened(use.signs, dtype)
        return replace(site, itemsize=dtype.itemsize), replace(use, stream=stream, signs=signs)


def _cast(proxy: Any, dtype: torch.dtype, mark: Mark) -> Any:
    result = proxy.to(dtype)
    meta.set_mark(result.node, mark)
    return result


def notes(dtype: torch.dtype | None) -> list[str]:
    """What the head of the file, and `explain`, say about it."""
    if dtype is None:
        return []
    return [f"Columns of curvature and what they meet are {dtype}; the forward pass, gradients and results are not."]
