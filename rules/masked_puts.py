"""w[mask] = value where no rule can count what a mask picks, as in a tensor made of parameters alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hbpcompiler.rule import Case, Tensor
from hbpcompiler.rule.decomposition import Decomposition


def masked_put(self: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """One mask over some axes, and values that are the same at all that it picks. Raises ValueError for others."""
    found = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(found) != 1 or found[0][1].dtype != torch.bool:
        raise ValueError("not one mask")
    ((axis, mask),) = found
    rest = self.dim() - axis - mask.dim()
    if values.dim() > rest and any(length != 1 for length in values.shape[: values.dim() - rest]):
        raise ValueError("values of their own for what the mask picks")
    if values.dim() > rest:
        values = values.reshape(values.shape[values.dim() - rest :])
    whole = mask.reshape([*mask.shape, *[1] * rest])
    return torch.where(whole, self + values if accumulate else values.to(self.dtype), self)


MASK = [True, False, True, True]
MASKED_PUT = Decomposition(
    ["aten.index_put"],
    masked_put,
    [
        Case({"self": shape, "values": values}, {"indices": [*[None] * axis, torch.tensor(mask)], "accumulate": added},
             ("self",), constant=() if values else ("values",))
        for shape, values, axis, mask in (((4,), (), 1, MASK), ((4, 2), (2,), 1, MASK), ((2, 4), (), 2, MASK),
                                          ((2, 4, 3), (1, 3), 1, [MASK, MASK[::-1]]))
        for added in (False, True)
    ],
)
