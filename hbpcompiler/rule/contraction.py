"""A parameter's cotangent as an einsum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from hbpcompiler.rule.fields import check_functions, what_is_wrong
from hbpcompiler.rule.op import Op


def letters_of(equation: str) -> tuple[str, str, str]:
    """The letters of an equation's first operand, of its second ("" if there is none) and of its result."""
    left, result = equation.split("->")
    first, _, second = left.partition(",")
    return first, second, result


@dataclass(frozen=True)
class Contraction:
    """A parameter's cotangent as an einsum, which is all that an operation says about a parameter.

    `equation` has the columns first, then (unless the parameter is added, as a bias is) the operand that the parameter
    meets: "nkpo,npi->nkoi". There is at most one summed letter, p, of length 1 or more; without shared positions it is
    absent. The result, [N, K, *letters], reshapes to the parameter's shape.
    """

    equation: str
    columns: Callable[[Op, Tensor], Tensor] = lambda op, columns: columns
    """columns at the output, [N, K, *out] -> the first operand; its entries are entries of the columns or sums of them
    (coefficients 0 and 1, so that squares go the same way)."""
    operand: Callable[[Op], Tensor] | None = None
    """the second operand; it may read saved tensors, which the compiler then slices over samples."""
    kernel: Callable[[Op, Tensor], Tensor] | None = None
    """optional: cotangent [N, *out] -> the parameter's cotangent summed over samples, where torch has a kernel that
    beats the einsum (see benchmarks/). Where outputs read a `Window`, it also takes m times as many output channels,
    for a parameter that has m times as many: so all columns of one sample go through it at once."""

    product: Callable[[Op, Tensor], Tensor] | None = field(default=None, kw_only=True)
    """optional: columns at the output, [N, K, *out] -> the einsum's result [N, K, *letters], where that is made faster
    than of the two operands."""

    index: Callable[[Op], Tensor] | None = field(default=None, kw_only=True)
    """optional: where the operand's rows are unit vectors, as those of an embedding are, [N, p] (or [N]) integers:
    where each has its one; -1 for a row of zeros. Only of "nkpd,npv->nkvd" or "nkd,nv->nkvd"."""

    linear: ClassVar[bool] = True
    """Whether the operand is a linear function of the operation's one input, if its structure is CONSTANT; else it is
    none: so the compiler makes some of its own (see `joint`), and no rule does."""

    def __post_init__(self) -> None:
        wrong = what_is_wrong(self.equation, self.operand is not None)
        if wrong is not None:
            raise ValueError(wrong)
        kind = f"Contraction(\"{self.equation}\")"
        check_functions(kind, self, ["columns"], ["operand", "kernel", "product", "index"])

    @property
    def letters(self) -> tuple[str, str, str]:
        """The letters of columns, operand ("" if none) and result."""
        return letters_of(self.equation)

    @property
    def has_kernel_for_columns(self) -> bool:
        """Whether columns may go through the kernel side by side: the letters say that no output channel meets others.

        That the kernel takes more output channels than the parameter has is promised of operations with a window.
        """
        first, second, result = self.letters
        own = first[2:-1]
        alone = first == f"nk{own}p" and len(own) == 1 and own not in second
        return self.kernel is not None and alone and result.startswith(f"nk{own}")

    def of_sample(self, op: Op, slot: str, columns: Tensor) -> Tensor:
        """Columns [1, K, *out] of a single sample -> [K, *parameter], as K times as many output channels."""
        assert self.kernel is not None
        channels, parameter, shape = columns.flatten(1, 2), getattr(op, slot), op.shape(slot)
        # Of the parameter the kernel reads the shape alone.
        like = parameter[:1].expand(channels.shape[1], *[-1] * (len(shape) - 1))
        return self.kernel(op.with_tensor(slot, like), channels).unflatten(0, (-1, shape[0]))
