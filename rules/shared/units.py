"""Units in which the two operands of a product are measured, so that what is added up has one size.

The cross block of a product u v is a difference of squares, of t u' + v' / t and t u' - v' / t for any t, one for each
column. Derivatives of operands go as their values do; with t^2 = |v| / |u| both parts have one size after all that lies
above, as in h / |h| by hand at large activations: otherwise what is smaller is rounded away.
"""

import torch

from hbpcompiler.rule import Op, Tensor, called

from .aligned import own_shape, repeated


def square_unit(op: Op, name: str, other: str, quotient: bool = False) -> Tensor:
    """t^2 for columns at `name`: how many times as large the other operand is, [N, ...] with the result's axes; N = 1
    where neither has samples, and 1 where that is no number.

    Sizes are means over the last axis and over what either operand is repeated along: each position of a sequence has
    its own, as its numbers may be a million times those of the others. A parameter that multiplies may be small (a
    gate's) and its derivative is 1: there the root of it has to do. 1 where columns count one by one: these are
    eigenvectors, then, where both operands have the result's shape.
    """
    if op.one_by_one:
        ones: Tensor = op.output.new_ones([1] * (1 + len(op.shape("output"))))
        return ones
    kept = positions(op, name, other)
    ratio = mean_size(op, other, kept) / mean_size(op, name, kept)
    return finite_unit(ratio if quotient or (op.has_samples(name) and op.has_samples(other)) else ratio.sqrt())


def finite_unit(ratio: Tensor) -> Tensor:
    """1 in the place of what is no unit."""
    return called("square_unit", torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0))


def positions(op: Op, *names: str) -> list[int]:
    """Axes of the result that have units of their own: all but the last and those along which one is repeated."""
    axes = set(range(len(op.shape("output")) - 1))
    for name in names:
        missing, ones = repeated(op, name)
        axes -= {*missing, *ones}
    return sorted(axes)


def mean_size(op: Op, name: str, kept: list[int]) -> Tensor:
    """Of an operand's numbers: [N, ...] with the result's axes, of length one but for those that are kept."""
    size: Tensor = getattr(op, name).abs()
    missing = len(op.shape("output")) - len(own_shape(op, name))
    lead = 1 if op.has_samples(name) or own_shape(op, name) != op.shape(name) else 0
    summed = [axis - missing + lead for axis in range(missing, len(op.shape("output"))) if axis not in kept]
    size = size.mean(summed, True) if summed else size
    for _ in range(missing):
        size = size.unsqueeze(lead)
    return size if lead else size.unsqueeze(0)


def of_entries(op: Op, name: str, unit: Tensor) -> Tensor:
    """A unit with the result's axes as one for each entry of an operand: [N, entries]."""
    missing, _ = repeated(op, name)
    for _ in missing:
        unit = unit.squeeze(1)
    return unit.expand(-1, *own_shape(op, name)).flatten(1) if own_shape(op, name) else unit.unsqueeze(1)
