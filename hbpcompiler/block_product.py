"""Products with a parameter's block of the curvature, from what the quantity `block` keeps.

With T[n, k] the parameter's einsum of column k and operand u of sample n, the block is sum_nk w_nk T T^T. A product
with v meets the operand first, z = u . v, then the columns, and goes back by the einsum: no [N, K, *theta] is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Tied
from hbpcompiler.compiler.routes import Site
from hbpcompiler.compiler.trace.checks import shown
from hbpcompiler.errors import InputError, InputTypeError
from hbpcompiler.quantities import BLOCK
from hbpcompiler.result import Result


def meetings(plan: Plan) -> Mapping[str, Close | Tied]:
    """Where kept pieces meet each parameter; one of them, as its einsum is the same for all."""
    return {step.parameter.key: step for step in plan.closings() for choice in step.choices if BLOCK in choice.kinds}


def block_product(result: Result, name: str, vectors: Tensor) -> Tensor:
    """See `Compiled.block_product`."""
    if "block" not in result:
        raise InputError("block_product needs what the quantity 'block' keeps: name it in "
                         f"hbp.compile(..., quantities=['block', ...]); this program computes {', '.join(result)}")
    if name not in result.block:
        raise InputError(f"{name!r} is no trainable parameter of this program; it has {', '.join(result.block)}")
    if name in result.changed_blocks():
        raise InputError(f"the batch, or a value that the block of {name!r} keeps of it, was changed in place after "
                         "the call, so that a product would be of neither batch: ask for products before, or call anew")
    meeting = result.meetings[name]
    shape, dtype = meeting.parameter.sample_shape, meeting.parameter.dtype
    if not isinstance(vectors, Tensor) or vectors.dtype != dtype:
        given = vectors.dtype if isinstance(vectors, Tensor) else type(vectors).__name__
        raise InputTypeError(f"vectors for {name!r} must be a tensor of {dtype}, not {given}")
    if vectors.dim() < len(shape) or tuple(vectors.shape[vectors.dim() - len(shape) :]) != tuple(shape):
        raise InputError(f"vectors of shape {shown(vectors)} do not end in the shape of {name!r}, {list(shape)}")
    with torch.no_grad():
        product = _Product(meeting.site, result.block[name]).times(vectors.reshape(-1, *meeting.site.shape))
    return product.reshape(vectors.shape)


def block_diagonal(meeting: Close | Tied, kept: Any, entries: Sequence[int]) -> Tensor:
    """Some entries of a block's diagonal, each by a product with its unit vector."""
    units = torch.zeros(len(entries), *meeting.site.shape, dtype=meeting.parameter.dtype,
                        device=_device(kept)).flatten(1)
    rows = torch.arange(len(entries), device=units.device)
    units[rows, list(entries)] = 1
    with torch.no_grad():
        product = _Product(meeting.site, kept).times(units.view(-1, *meeting.site.shape))
    return product.flatten(1)[rows, list(entries)]


def _device(kept: Any) -> torch.device:
    return next(part.device for part in (*kept.columns, *kept.diagonals))


@dataclass
class _Product:
    """The einsums of one parameter, with b for the vectors."""

    site: Site
    kept: Any

    def times(self, vectors: Tensor) -> Tensor:
        """[b, *theta] -> [b, *theta], in the site's layout of theta."""
        left = self.site.letters[0]
        seen = self._seen(vectors)
        letters, each = self._letters, left.replace("k", "")
        total = torch.zeros_like(vectors)
        for columns, weights in zip(self.kept.columns, self.kept.weights, strict=True):
            inner = torch.einsum(f"{letters},{left}->bnk", [seen, columns]) * weights
            total += self._back(torch.einsum(f"bnk,{left}->b{each}", [inner, columns]))
        for diagonal in self.kept.diagonals:
            total += self._back(torch.einsum(f"{letters},{each}->b{each}", [seen, diagonal]))
        return total

    @property
    def _letters(self) -> str:
        """Of a vector as the columns see it: without an operand all samples and positions see the same."""
        return "b" + (self.site.letters[0].replace("k", "") if self.site.has_operand else self.site.theta)

    def _seen(self, vectors: Tensor) -> Tensor:
        if not self.site.has_operand:
            return vectors
        return torch.einsum(f"{self.site.letters[1]},b{self.site.theta}->{self._letters}", [self.kept.operand, vectors])

    def _back(self, columns: Tensor) -> Tensor:
        each, right = self.site.letters[0].replace("k", ""), self.site.letters[1]
        if not self.site.has_operand:
            return torch.einsum(f"b{each}->b{self.site.theta}", [columns])
        return torch.einsum(f"b{each},{right}->b{self.site.theta}", [columns, self.kept.operand])
