"""Two operands of an elementwise operation that torch broadcasts, as columns [N, K, *out] meet them.

An operand has samples or not (a constant, a parameter), and may be a number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Contraction, Noise, Op, Shape, Tensor, called


def other_than(name: str) -> str:
    return "other" if name == "self" else "self"


def varying(op: Op, names: Sequence[str] = ("self", "other")) -> list[str]:
    return [name for name in names if op.varies(name)]


def scaled(value: Any, number: Any) -> Any:
    """A product with a number, or an expression in the batch's size; short where that is 1 or -1."""
    if not isinstance(number, int | float):
        return value * number
    return value if number == 1 else -value if number == -1 else value * number


def lifted(op: Op, name: str) -> Any:
    """The operand, or the result, as it meets columns: with a column axis after its sample axis if it has one."""
    value = getattr(op, name)
    return value.unsqueeze(1) if name == "output" or op.has_samples(name) else value


def own_shape(op: Op, name: str) -> Shape:
    """The operand's shape, without the axis of length one that a constant may have in place of samples."""
    shape = op.shape(name)
    return shape[1:] if len(shape) > len(op.shape("output")) else shape


def is_whole(op: Op, name: str) -> bool:
    """Whether the operand has the result's shape, samples included."""
    return op.has_samples(name) and op.shape(name) == op.shape("output")


def repeated(op: Op, name: str) -> tuple[list[int], list[int]]:
    """Axes of the result that the operand lacks, and those along which its one entry is repeated."""
    shape, output = own_shape(op, name), op.shape("output")
    missing = len(output) - len(shape)
    ones = [axis for axis in range(missing, len(output)) if shape[axis - missing] != output[axis]]
    return list(range(missing)), ones


def unbroadcast(op: Op, name: str, columns: Tensor) -> Tensor:
    """[N, K, *out] -> [N, K, *operand]: the sum over what was repeated."""
    missing, ones = repeated(op, name)
    if ones:
        columns = columns.sum([axis + 2 for axis in ones], True)
    if missing:
        columns = columns.sum([axis + 2 for axis in missing])
    return columns if own_shape(op, name) == op.shape(name) else columns.unsqueeze(2)


def misaligned(op: Op, names: Sequence[str] = ("self", "other")) -> str | None:
    """Why the operands' sample axes do not meet, if they do not."""
    for name in names:
        if op.has_samples(name) and len(op.shape(name)) < len(op.shape("output")):
            return (
                f"'{name}' has fewer axes than the result, so that its sample axis meets another axis; give it axes of "
                "length one, as in x.unsqueeze(1)"
            )
    return None


def square_unit(op: Op, name: str, other: str, axes: int | None = None, quotient: bool = False) -> Tensor:
    """How many times as large the other operand is as this one, on average over each sample: [N, 1, ...] with as many
    axes as the result has, or so many; N = 1 where neither has samples, and 1 where that is no number.

    Derivatives of operands go as their values do. With columns at this one times the root of this, and at the other one
    divided by it, both parts of a difference of squares are of one size after all that lies above, as in h / |h| by
    hand at large activations: otherwise what is smaller is rounded away. A parameter that multiplies may be small (a
    gate's) and its derivative is 1: there the root of it has to do. 1 where columns count one by one: these are
    eigenvectors, then, where both operands have the result's shape.
    """
    shape = [1] * (len(op.shape("output")) if axes is None else axes - 1)
    if op.one_by_one:
        ones: Tensor = op.output.new_ones([1, *shape])
        return ones
    ratio = mean_size(op, other) / mean_size(op, name)
    known = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0)
    if not quotient and not (op.has_samples(name) and op.has_samples(other)):
        known = known.sqrt()
    return called("square_unit", known.reshape(-1, *shape))


def mean_size(op: Op, name: str) -> Tensor:
    """Of an operand's numbers: [N], or one number where it has no samples."""
    size: Tensor = getattr(op, name).abs()
    if not op.has_samples(name):
        return size.mean() if op.shape(name) else size
    return size.flatten(1).mean(1) if op.shape(name) else size


def is_gate(op: Op, name: str) -> bool:
    """Whether the operand is repeated, as one number for each channel is, and has the fewest entries."""
    size = math.prod(op.shape(name))
    others = (other for other in ("self", "other") if other != name)
    return size < math.prod(op.shape("output")) and all(size <= math.prod(op.shape(other)) for other in others)


def gate_columns(op: Op, name: str, value: Tensor, curvature: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Columns of the cross block diag(value) between an operand that `is_gate` and the other one: two for each entry of
    it, however often it is repeated; and their signs. `value` is [N, *out].

    Entry e_j meets the row c_j, the values wherever it is repeated. With v = c_j + r_j e_j / 2, where r [N, h] is the
    gate's own `curvature`, e_j v^T + v e_j^T is half of the difference of (t e_j + v / t)(t e_j + v / t)^T and the same
    with -v, for any t; t = sqrt|v|, in units of the operands' sizes, keeps both parts of one size.
    """
    met, size = other_than(name), math.prod(op.shape(name))
    missing, _ = repeated(op, name)
    unit = torch.eye(size, dtype=value.dtype, device=value.device)
    unit = unit.reshape(1, size, *[1] * len(missing), *own_shape(op, name))
    rows = unbroadcast(op, met, value.unsqueeze(1) * unit).flatten(2)
    length = rows.norm(2, [-1]) * square_unit(op, name, met, 2, curvature is not None)
    length = (length if curvature is None else torch.hypot(length, curvature / 2)).clamp(min=1e-30)
    rows = (rows / (2 * length).sqrt().unsqueeze(-1)).reshape(-1, size, *op.shape(met))
    root = (length / 2).sqrt()
    bent = None if curvature is None else curvature / (8 * length).sqrt()
    plus, minus = (torch.diag_embed(part).reshape(-1, size, *op.shape(name))
                   for part in ((root, root) if bent is None else (root + bent, root - bent)))
    ones = torch.ones_like(length)
    return {name: torch.cat([plus, minus], 1), met: torch.cat([rows, -rows], 1)}, torch.cat([ones, -ones], 1)


def gate_drawn(op: Op, name: str, value: Tensor, noise: Noise, curvature: Tensor | None = None) -> dict[str, Tensor]:
    """Random sums of `gate_columns`, one sign for both columns of an entry."""
    met, full = other_than(name), (*[1] * len(repeated(op, name)[0]), *own_shape(op, name))
    length = unbroadcast(op, name, value.square().unsqueeze(1)).sqrt()
    length = length * square_unit(op, name, met, 2 + len(op.shape(name)), curvature is not None)
    bent = None if curvature is None else curvature.reshape(-1, 1, *op.shape(name))
    length = (length if bent is None else torch.hypot(length, bent / 2)).clamp(min=1e-30)
    signs = noise(*op.shape(name))
    root, share = (length / 2).sqrt() * signs, signs / (2 * length).sqrt()
    repeated_share = share if full == op.shape(name) else share.reshape(value.shape[0], -1, *full)
    rows = unbroadcast(op, met, value.unsqueeze(1) * repeated_share)
    bend = 0 if bent is None else bent / 2 * share
    return {name: torch.cat([root + bend, root - bend], 1), met: torch.cat([rows, -rows], 1)}


def some_columns(op: Op, name: str, value: Tensor, numbers: Tensor,
                 curvature: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Those of `gate_columns` with these numbers [k]: first the sums, then the differences. `name` may be whole too."""
    met, size = other_than(name), math.prod(op.shape(name))
    entry, sign = numbers % size, (1 - 2 * (numbers // size)).type_as(value)
    unit = F.one_hot(entry, size).type_as(value)
    missing, _ = repeated(op, name)
    placed = unit.reshape(1, -1, *[1] * len(missing), *own_shape(op, name))
    rows = unbroadcast(op, met, value.unsqueeze(1) * placed)
    rows = rows.flatten(2) if op.shape(met) else rows.unsqueeze(2)
    bent = None if curvature is None else curvature[:, entry]
    length = rows.norm(2, [-1]) * square_unit(op, name, met, 2, curvature is not None)
    length = (length if bent is None else torch.hypot(length, bent / 2)).clamp(min=1e-30)
    root = (length / 2).sqrt() if bent is None else (length / 2).sqrt() + bent / (8 * length).sqrt() * sign
    rows = rows / (2 * length).sqrt().unsqueeze(-1) * sign.unsqueeze(-1)
    columns = {name: (root.unsqueeze(-1) * unit).reshape(root.shape[0], -1, *op.shape(name)),
               met: rows.reshape(rows.shape[0], -1, *op.shape(met))}
    return columns, torch.ones_like(length) * sign


def columns_per_element(op: Op, value: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt|value| as one column per element of the result, [N, h, *out], and the signs of value, [N, h]."""
    output = op.shape("output")
    flat = value.reshape(-1, math.prod(output))
    columns = torch.diag_embed(flat.abs().sqrt())
    signs = torch.ones_like(flat).copysign(flat)
    return columns if len(output) == 1 else columns.reshape(-1, math.prod(output), *output), signs


# -- a parameter as an operand ---------------------------------------------------------------------------------------


def added(op: Op, name: str, times: Callable[[Op], Any] = lambda op: 1) -> Contraction:
    """The cotangent of a parameter that is added so many times: sums of columns."""
    number = times(op)
    if not isinstance(number, int | float):  # an expression in the batch's size, which the program has its own of
        return multiplied(op, name, lambda op: torch.ones_like(op.output) * times(op), True)
    if number != 1:
        return multiplied(op, name, lambda op: torch.full_like(op.output, number), True)

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        total = unbroadcast(op, name, columns)
        return total.flatten(2) if op.shape(name) else total.unsqueeze(2)

    return Contraction("nko->nko", columns_view)


def multiplied(op: Op, name: str, factor: Callable[[Op], Tensor], whole: bool) -> Contraction:
    """The cotangent of a parameter that meets `factor`, [N, *out] if whole; positions are where it is repeated."""
    missing, ones = repeated(op, name)
    positions = missing + ones
    kept = [axis for axis in range(len(op.shape("output"))) if axis not in positions]

    def arranged(tensor: Tensor, lead: int) -> Tensor:
        """Sample axes, then positions as one axis, then the parameter's entries as one axis."""
        order = [*range(lead), *[axis + lead for axis in positions + kept]]
        tensor = tensor if order == sorted(order) else tensor.permute(order)
        if len(kept) != 1:
            tensor = tensor.flatten(lead + len(positions)) if kept else tensor.unsqueeze(-1)
        return tensor.flatten(lead, -2) if len(positions) > 1 else tensor

    def operand(op: Op) -> Tensor:
        value = factor(op)
        return arranged(value if whole else value.expand(-1, *op.shape("output")), 1)

    equation = "nkpd,npd->nkd" if positions else "nkd,nd->nkd"
    return Contraction(equation, lambda op, columns: arranged(columns, 2), operand)
