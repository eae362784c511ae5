"""An operand that is repeated, as one number for each channel is: columns of its cross block with the other operand."""

import math

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Noise, Op, Tensor
from hbpcompiler.rule.ranges import above_zero, largest_of_samples, lengths

from .aligned import other_than, own_shape, repeated, unbroadcast
from .units import of_entries, square_unit


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
    each = torch.eye(size, dtype=value.dtype, device=value.device)
    each = each.reshape(1, size, *[1] * len(missing), *own_shape(op, name))
    rows = unbroadcast(op, met, value.unsqueeze(1) * each).flatten(2)
    unit = of_entries(op, name, square_unit(op, name, met, curvature is not None))
    length = lengths(rows).squeeze(-1) * unit
    length = above_zero(length if curvature is None else torch.hypot(length, curvature / 2))
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
    scale = largest_of_samples(value)
    length = unbroadcast(op, name, (value / scale).square().unsqueeze(1)).sqrt()
    unit = of_entries(op, name, square_unit(op, name, met, curvature is not None) * scale)
    length = length * unit.reshape(-1, 1, *op.shape(name))
    bent = None if curvature is None else curvature.reshape(-1, 1, *op.shape(name))
    length = above_zero(length if bent is None else torch.hypot(length, bent / 2))
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
    of_each = of_entries(op, name, square_unit(op, name, met, curvature is not None))
    length = lengths(rows).squeeze(-1) * of_each[:, entry]
    length = above_zero(length if bent is None else torch.hypot(length, bent / 2))
    root = (length / 2).sqrt() if bent is None else (length / 2).sqrt() + bent / (8 * length).sqrt() * sign
    rows = rows / (2 * length).sqrt().unsqueeze(-1) * sign.unsqueeze(-1)
    columns = {name: (root.unsqueeze(-1) * unit).reshape(root.shape[0], -1, *op.shape(name)),
               met: rows.reshape(rows.shape[0], -1, *op.shape(met))}
    return columns, torch.ones_like(length) * sign
