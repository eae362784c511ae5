"""What a block is but for its numbers: enough to make it again around tensors that another process has sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hbpcompiler.curvature.block import Block
from hbpcompiler.curvature.elementary import Dense, Diagonal
from hbpcompiler.curvature.kronecker import EigenKronecker, Kronecker
from hbpcompiler.curvature.place import Matrix, Place
from hbpcompiler.curvature.symmetric import Symmetric


class Outline(NamedTuple):
    """Of a block."""

    kind: str
    quantity: str
    eps: tuple[float, ...]
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]

    def empty(self, former: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Tensors to write into: the former ones, where they are the same but for their numbers."""
        found = {}
        for name, (shape, dtype) in self.tensors.items():
            old = former.get(name)
            if old is None or (tuple(old.shape), old.dtype, old.device) != (shape, dtype, device):
                old = torch.empty(shape, dtype=dtype, device=device)
            found[name] = old.contiguous()
        return found

    def block(self, place: Place, tensors: Mapping[str, Tensor]) -> Block:
        """Around these."""
        title = f"{place.title} ({self.quantity})"
        if self.kind == Dense.__name__:
            return Dense(place, self.quantity, Symmetric(tensors["matrix"], title, self.eps[0]))
        if self.kind == Diagonal.__name__:
            return Diagonal(place, self.quantity, tensors["values"], self.eps[0])
        assert isinstance(place, Matrix)
        if self.kind == EigenKronecker.__name__:
            return EigenKronecker(place, self.quantity, tensors.get("A"), tensors["B"], tensors["values"], self.eps[0])
        inputs, outputs = (Symmetric(tensors[name], f"{name} of {title}", eps)
                           for name, eps in zip("AB", self.eps, strict=True))
        return Kronecker(place, self.quantity, inputs, outputs)


def outline(block: Block) -> Outline:
    """Of one that is there."""
    if isinstance(block, Diagonal | EigenKronecker):
        eps: tuple[float, ...] = (block.eps,)
    else:
        eps = tuple(matrix.eps for matrix in block.symmetric_matrices)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in block.tensors.items()}
    return Outline(type(block).__name__, block.quantity, eps, shapes)
