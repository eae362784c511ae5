"""Of a matrix product A B, [*b, r, s] by [*b, s, t]: columns of its cross block, under a gradient g [N, b, r, t]; what
was repeated along batch axes."""

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Shape, Tensor, otherwise_called
from hbpcompiler.rule.ranges import above_zero, lengths


def cross_columns(g: Tensor, inner: int, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of the columns (b, r, s): sqrt(|g_br| / 2) at (b, r, s), and g_br / sqrt(2 |g_br|) at (b, s, all t).

    g [N, b, r, t] -> [N, (b r s), (b r s)] and [N, (b r s), b, s, t]. Of equal size in the operands' units (see
    `square_unit`), so that their sum cancels nothing.
    """
    size = otherwise_called("size", above_zero(lengths(g) * (unit / 2)).sqrt())
    own = torch.diag_embed(size.expand(-1, -1, -1, inner).flatten(1))
    met = (g / (2 * size)).unsqueeze(-1).expand(-1, -1, -1, -1, inner)  # [N, b, r, t, s]
    met = torch.diag_embed(torch.diag_embed(met).movedim(1, -1))  # [N, r, t, s, s, b, b]
    return own, met.permute(0, 5, 1, 3, 6, 4, 2).flatten(1, 3)


def some_cross_columns(g: Tensor, batch: int, rows: int, inner: int, numbers: Tensor, unit: Tensor
                       ) -> tuple[Tensor, Tensor]:
    """Those with these numbers [k]: [N, k, (b r s)] and [N, k, b, s, t]."""
    met = g.flatten(1, 2)[:, numbers // inner]
    units = unit.expand(-1, batch, rows, -1).flatten(1, 2)[:, numbers // inner]
    size = above_zero(lengths(met) * (units / 2)).sqrt()
    own = size * F.one_hot(numbers, batch * rows * inner).type_as(g)
    place = numbers // (rows * inner) * inner + numbers % inner
    spread = F.one_hot(place, batch * inner).type_as(g).unsqueeze(-1)
    return own, ((met / (2 * size)).unsqueeze(2) * spread).unflatten(2, (batch, inner))


def summed(columns: Tensor, shape: Shape, full: Shape) -> Tensor:
    """[N, K, *full] -> [N, K, *shape]: the sum over repeated axes, which have length one in shape or are missing."""
    missing = len(full) - len(shape)
    ones = [axis + 2 for axis in range(missing, len(full)) if shape[axis - missing] != full[axis]]
    if ones:
        columns = columns.sum(ones, True)
    return columns.sum(list(range(2, 2 + missing))) if missing else columns
